// ThreadSanitizer sees only what is compiled with it. The installed gRPC, Protobuf and Abseil are not, so what they
// hand from thread to thread under absl::Mutex looks unordered; reports in their code say nothing about ours. Part of
// every program that uses gRPC, since proto/channel is.
#if defined(__SANITIZE_THREAD__)
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() {
  return "called_from_lib:libgrpc.so\n"
         "called_from_lib:libgrpc++.so\n"
         "called_from_lib:libgpr.so\n"
         "called_from_lib:libprotobuf.so\n"
         "called_from_lib:libabsl_\n"
         "race:grpc::\n"
         "race:grpc_core::\n"
         "race:libgrpc\n"
         "race:google::protobuf::\n"
         "race:libabsl_\n"
         "mutex:libgrpc\n"
         "mutex:libabsl_\n"
         "deadlock:libgrpc\n"
         "deadlock:libabsl_\n";
}
#endif
