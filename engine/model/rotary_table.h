// The table of rotary embeddings that every decoder reads: computed in double, rounded once to FP32.
#ifndef LOCKSTEP_ENGINE_MODEL_ROTARY_TABLE_H_
#define LOCKSTEP_ENGINE_MODEL_ROTARY_TABLE_H_

#include "engine/model/model.h"

namespace lockstep {

// table [max_position_embeddings, E]: a row has E/2 cosines, then E/2 sines, of the angles of the pairs (i, i + E/2).
void FillRotaryTable(const ModelConfig& config, float* table);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_ROTARY_TABLE_H_
