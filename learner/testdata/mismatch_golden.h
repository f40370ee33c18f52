// Written by tests/golden/make_mismatch_golden.py with numpy. Do not edit.
// clang-format off
inline const std::vector<int32_t> kMismatchOffsets = {0, 7, 8, 20, 50, 50, 68};
inline const std::vector<float> kMismatchLogMu = {-1.846739501e-01f, -3.973855078e-01f, -9.038273692e-01f, -3.763763234e-02f, -2.727974392e-02f, -5.533689499e+00f, -5.812548846e-02f, -1.037987322e-01f, -2.072879821e-01f, -5.640252233e-01f, -3.241808116e-01f, -5.861119628e-01f, -8.139761686e-01f, -7.231887430e-02f, -1.108304501e+00f, -1.085152864e+00f, -2.194091797e+00f, -2.420168877e+00f, -1.390842795e+00f, -9.905841947e-01f, -3.187091351e-01f, -4.454574585e-01f, -5.399203300e-01f, -6.923283935e-01f, -1.882086635e+00f, -6.628676057e-01f, -1.090286970e+00f, -3.164850235e+00f, -2.775758877e-02f, -4.020540714e-01f, -8.708053827e-01f, -2.419228554e-01f, -2.433446169e+00f, -3.903181553e-01f, -2.931164205e-01f, -1.051859856e+00f, -1.858500689e-01f, -4.164452255e-01f, -1.260569245e-01f, -4.894970357e-02f, -1.985614002e-01f, -2.746393681e-01f, -9.128194451e-01f, -6.592054963e-01f, -2.438207150e+00f, -4.409676492e-01f, 0.000000000e+00f, -1.195937172e-01f, -2.147347629e-01f, -7.744559646e-02f, 0.000000000e+00f, -1.976037771e-01f, -2.387587786e+00f, -4.620408416e-01f, -7.300431132e-01f, -1.282347143e-01f, -1.344916821e-01f, -4.603077099e-02f, -7.130404711e-01f, -4.680500925e-01f, -4.002200067e-01f, -1.057338119e+00f, -2.871729061e-02f, -2.404054105e-01f, -7.857404351e-01f, -1.505481362e+00f, -7.473330200e-02f, -2.551011801e+00f};
inline const std::vector<float> kMismatchLogPi = {-1.846739501e-01f, -4.316456020e-01f, -8.989261389e-01f, -3.763763234e-02f, -9.426750243e-02f, -3.033689260e+00f, -5.812548846e-02f, -1.519553214e-01f, -2.345414013e-01f, -5.640252233e-01f, -2.778475583e-01f, -6.529713869e-01f, -8.139761686e-01f, -1.046661511e-01f, -1.177397847e+00f, -1.085152864e+00f, -2.182965994e+00f, -2.358708143e+00f, -1.390842795e+00f, -1.070302963e+00f, -4.238869250e-01f, -4.454574585e-01f, -5.151728988e-01f, -7.315056324e-01f, -1.882086635e+00f, -6.879281402e-01f, -1.056979418e+00f, -3.164850235e+00f, -3.092662804e-02f, -3.958670497e-01f, -8.708053827e-01f, -2.652858496e-01f, -2.452840090e+00f, -3.903181553e-01f, -2.860320210e-01f, -9.916140437e-01f, -1.858500689e-01f, -4.807676971e-01f, -1.205290183e-01f, -4.894970357e-02f, -2.692835331e-01f, -3.051526248e-01f, -9.128194451e-01f, -6.663311124e-01f, -2.419137955e+00f, -4.409676492e-01f, -3.564778948e-03f, -2.520692945e-01f, -2.147347629e-01f, -4.909121245e-02f, -1.070840936e-02f, -1.976037771e-01f, -2.378059864e+00f, -4.485489428e-01f, -7.300431132e-01f, -1.869756430e-01f, -1.395950615e-01f, -4.603077099e-02f, -6.960460544e-01f, -4.884400070e-01f, -4.002200067e-01f, -9.888407588e-01f, -7.251296192e-02f, -2.404054105e-01f, -8.187361956e-01f, -1.536598563e+00f, -7.473330200e-02f, -2.595604658e+00f};
struct MismatchGolden { const char* name; double lockstep::MismatchReport::*field; double value; };
inline const std::vector<MismatchGolden> kMismatchGoldens = {
    {"kl_k1", &lockstep::MismatchReport::kl_k1, -2.530397656579118e-02},
    {"kl_k2", &lockstep::MismatchReport::kl_k2, 4.665547245393665e-02},
    {"kl_k3", &lockstep::MismatchReport::kl_k3, 1.283706136292300e-01},
    {"mean_abs_log_ratio", &lockstep::MismatchReport::mean_abs_log_ratio, 6.048592217335039e-02},
    {"max_abs_log_ratio", &lockstep::MismatchReport::max_abs_log_ratio, 2.500000238418579e+00},
    {"max_probability_difference", &lockstep::MismatchReport::max_probability_difference, 1.100899692967167e-01},
    {"min_probability_difference", &lockstep::MismatchReport::min_probability_difference, -4.418633401424626e-02},
    {"ratio_outside", &lockstep::MismatchReport::ratio_outside, 5.294117647058824e-01},
    {"probability_correlation", &lockstep::MismatchReport::probability_correlation, 9.967577427003304e-01},
    {"effective_sample_size_token", &lockstep::MismatchReport::effective_sample_size_token, 4.228481245588105e-01},
    {"chi_square_token", &lockstep::MismatchReport::chi_square_token, 2.147619636365532e+00},
    {"rollout_perplexity", &lockstep::MismatchReport::rollout_perplexity, 2.094800536483531e+00},
    {"training_perplexity", &lockstep::MismatchReport::training_perplexity, 1.959008387554032e+00},
    {"perplexity_ratio", &lockstep::MismatchReport::perplexity_ratio, 9.581899022285647e-01},
    {"sequence_log_ratio_mean", &lockstep::MismatchReport::sequence_log_ratio_mean, 3.441340812947601e-01},
    {"sequence_log_ratio_min", &lockstep::MismatchReport::sequence_log_ratio_min, -3.395416496787220e-01},
    {"sequence_log_ratio_max", &lockstep::MismatchReport::sequence_log_ratio_max, 2.403653616085649e+00},
    {"sequence_log_ratio_slope", &lockstep::MismatchReport::sequence_log_ratio_slope, -4.295815712513991e+01},
    {"effective_sample_size_sequence", &lockstep::MismatchReport::effective_sample_size_sequence, 3.334604184654360e-01},
    {"chi_square_sequence", &lockstep::MismatchReport::chi_square_sequence, 2.406114005382585e+01},
};
// clang-format on
