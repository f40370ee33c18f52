// Programs of the system.
#ifndef LOCKSTEP_CLIENT_PATH_SEARCH_H_
#define LOCKSTEP_CLIENT_PATH_SEARCH_H_

#include <optional>
#include <string>

namespace lockstep {

// The first executable file of that name in the folders of PATH (/usr/bin:/bin where it is not set).
std::optional<std::string> FindOnPath(const std::string& program);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_PATH_SEARCH_H_
