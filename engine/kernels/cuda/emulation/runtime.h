// Tests only: the runtime API (memory, streams, events, graphs) of the emulation; the kernels' half is cuda_runtime.h,
// which includes this.
//
// A created stream does nothing by itself: its work waits in a queue until somebody waits for it (the stream, an event
// behind it, the device, or another stream that was told to wait and is waited for). A device may be as slow as that,
// so a result that is read too early is old, and a buffer that is overwritten too early shows. The null stream runs at
// once and waits for nobody. A capturing stream records; a graph's launch is one piece of work. Memory of the "device"
// is the host's, filled with NaNs when it is allocated and when it is freed.
//
// It is as strict as the real one, or stricter where that has undefined behaviour. A call that the runtime refuses:
//   - in a capture, by the capturing thread (by every thread, where the capture is global): allocating, freeing,
//   waiting
//     for or asking of anything, copies with memory that is not pinned, work on the null stream. The capture is invalid
//     from then on, and its end says so.
//   - copies and clears that leave an allocation; the time of an event that keeps none, or has not happened.
// What a device would do silently ends the test with a line:
//   - pinned memory that changes between the call of a copy and the copy. (What a copy fills is filled with NaNs until
//     then, so that reading it early shows.)
//   - pinned memory that is freed while a copy or a graph uses it.
//   - a graph that is started after memory that it was captured with has been freed.
// Copies with memory that is not pinned are made as the real ones are: to the device from what the host has at the
// call, from the device before the call is back.
//
// Threads: calls may come from any, and a thread has its own current device. Work runs on the thread that waits for it,
// one piece at a time in the whole process. A kernel or a clear on a stream of another device than the thread's is
// refused, as CUDA does; that memory is of the same device as the stream is not checked.
//
// Processes: memory and events that are exported (cudaIpc*, ipc.cc) are shared memory; environment.h sets a process's
// devices and faults from its environment.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_RUNTIME_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_RUNTIME_H_

#include <cstddef>
#include <functional>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorStubLibrary = 34,
  cudaErrorInsufficientDriver = 35,
  cudaErrorCallRequiresNewerDriver = 36,
  cudaErrorDevicesUnavailable = 46,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorECCUncorrectable = 214,
  cudaErrorNvlinkUncorrectable = 220,
  cudaErrorJitCompilerNotFound = 221,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorContained = 226,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorLaunchTimeout = 702,
  cudaErrorContextIsDestroyed = 709,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
  cudaErrorTensorMemoryLeak = 721,
  cudaErrorNotSupported = 801,
  cudaErrorSystemNotReady = 802,
  cudaErrorSystemDriverMismatch = 803,
  cudaErrorCompatNotSupportedOnDevice = 804,
  cudaErrorMpsClientTerminated = 810,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorStreamCaptureImplicit = 906,
  cudaErrorStreamCaptureWrongThread = 908,
  cudaErrorExternalDevice = 911,
  cudaErrorUnknown = 999,
};
using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;

namespace lockstep::emulation {

// Work that says cudaErrorNotReady is still under way and is asked again; it keeps its place in the stream. Only
// created streams take such work.
using Work = std::function<cudaError_t()>;
// At once on the null stream; else at the end of the queue, or of the graph that is being captured.
cudaError_t Submit(cudaStream_t stream, Work work);
// Of a launch that is about to be submitted: an argument's bytes. Addresses of device memory in them are the graph's
// that is being captured, if one is.
void NoteUse(cudaStream_t stream, const void* argument, size_t bytes);

// What each device has. Bytes in use count the size asked for, of the current device.
void SetMemoryLimit(size_t bytes);
size_t MemoryInUse();
// The work that comes after `skip` others fails with `error`, and so does everything from then on, as on a device
// whose context is lost; cudaSuccess heals it.
void FailWork(int skip, cudaError_t error);
// Called before each piece of work begins; for faults that come from outside (environment.h).
void SetWorkHook(std::function<void()> hook);
// Pieces of work that wait in all streams.
size_t PendingWork();
// Whether a kernel may start on the stream: it is of the thread's device.
cudaError_t CheckStream(cudaStream_t stream);

// What driver and devices say of themselves; a test sets it, and `TheDevices() = {}` puts it back. Calls fail with the
// error beside them. Memory: SetMemoryLimit, less what others use.
struct Devices {
  int driver_version = 13000;  // 0: no driver
  int runtime_version = 13000;
  int count = 1;
  const char* name = "Emulated device";
  int major = 9, minor = 0;
  int first_bus = 1;  // of device 0; the others follow
  size_t bytes_of_others = 0;
  cudaError_t get_device_count = cudaSuccess;
  cudaError_t get_device_properties = cudaSuccess;
  cudaError_t set_device = cudaSuccess;
  cudaError_t get_device = cudaSuccess;
  cudaError_t mem_get_info = cudaSuccess;
};
Devices& TheDevices();

}  // namespace lockstep::emulation

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4,
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2,
};
inline constexpr unsigned cudaHostAllocDefault = 0;
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDefault = 0;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaEventInterprocess = 4;  // with cudaEventDisableTiming

cudaError_t cudaMalloc(void** pointer, size_t bytes);
cudaError_t cudaFree(void* pointer);
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* pointer);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);

enum cudaMemoryType {
  cudaMemoryTypeUnregistered = 0,
  cudaMemoryTypeHost = 1,
  cudaMemoryTypeDevice = 2,
  cudaMemoryTypeManaged = 3,
};
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
  void* devicePointer;
  void* hostPointer;
};
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer);

struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int major, minor;
};
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetPCIBusId(char* bus_id, int length, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75 };
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);  // runs one piece of its work
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
// Each call runs one piece of the work that the event waits for.
cudaError_t cudaEventQuery(cudaEvent_t event);
// Of the host's clock, between the two calls of cudaEventRecord: a number above 0, and no measure of a device.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);

// Between processes. A handle's own process cannot open it.
struct cudaIpcMemHandle_t {
  char reserved[64];
};
struct cudaIpcEventHandle_t {
  char reserved[64];
};
inline constexpr unsigned cudaIpcMemLazyEnablePeerAccess = 1;
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory);  // the beginning of an allocation
cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned flags);
cudaError_t cudaIpcCloseMemHandle(void* memory);
cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t* handle, cudaEvent_t event);
cudaError_t cudaIpcOpenEventHandle(cudaEvent_t* event, cudaIpcEventHandle_t handle);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_RUNTIME_H_
