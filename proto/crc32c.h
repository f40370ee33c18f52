// CRC-32C (Castagnoli), as RFC 3720 appendix B.4 has it: polynomial 0x1EDC6F41, bits reflected, initial value and final
// XOR 0xFFFFFFFF. It frames the records of TensorBoard's event files.
#ifndef LOCKSTEP_PROTO_CRC32C_H_
#define LOCKSTEP_PROTO_CRC32C_H_

#include <cstdint>
#include <string_view>

namespace lockstep {

uint32_t Crc32c(std::string_view bytes);

}  // namespace lockstep

#endif  // LOCKSTEP_PROTO_CRC32C_H_
