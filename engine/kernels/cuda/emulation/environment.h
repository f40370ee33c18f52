// Tests only: a process whose emulated devices are what its environment says. For programs that a test starts; whoever
// links //engine/kernels/cuda/emulation:environment has it, before main.
//
// LOCKSTEP_EMULATED_GPU: settings, separated by spaces; an unknown one ends the process.
//   devices=2         their number (1); CUDA_VISIBLE_DEVICES chooses among them, by numbers
//   memory_mib=4096   of each device, in each process (16 GiB)
//   used_mib=1000     of it, what others use (0)
//   driver=0          version of the driver, 1000 major + 10 minor (13000); 0: there is none
//   capability=75     10 major + minor (90)
//   nccl=0            no NCCL (1); for //weight_sync:emulated_nccl_api
//   faults=FOLDER     where faults wait, below
//
// A file FOLDER/PROGRAM (PROGRAM: the name under which a process was started) with "SKIP ERROR" is a fault: the process
// that finds it takes it away, and of the work on its device, the piece after the next SKIP ones fails with the error
// of that number, as does everything after it. So a fault meets one process once, and may be put there while it runs.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_ENVIRONMENT_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_ENVIRONMENT_H_

#include <map>
#include <string>

namespace lockstep::emulation {

// The settings by name, those that were not given as well.
const std::map<std::string, std::string>& Environment();

}  // namespace lockstep::emulation

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_ENVIRONMENT_H_
