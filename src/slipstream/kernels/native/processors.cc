// How many processors this process may really use.
#include "pool.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace slipstream {
namespace {

constexpr double kUnlimited = 1e9;

// cpu.max of cgroup v2: "max 100000" or "150000 100000".
double quota_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  double quota = 0, period = 0;
  return file >> quota >> period && quota > 0 && period > 0 ? quota / period : kUnlimited;
}

// cgroup v1: -1 means no limit.
double quota_v1(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  return quota_file >> quota && period_file >> period && quota > 0 && period > 0 ? quota / period : kUnlimited;
}

// The smallest quota of a group and of those above it: each of them limits.
double smallest(const std::string& root, std::string path, double (*quota)(const std::string&)) {
  double least = quota(root);
  while (path.size() > 1) {
    least = std::min(least, quota(root + path));
    path.erase(path.rfind('/'));
  }
  return least;
}

double cgroup_quota() {
  double least = kUnlimited;
  std::ifstream groups("/proc/self/cgroup");  // lines of hierarchy:controllers:path
  for (std::string line; std::getline(groups, line);) {
    std::istringstream fields(line);
    std::string hierarchy, controllers, path;
    if (!std::getline(fields, hierarchy, ':') || !std::getline(fields, controllers, ':') || !std::getline(fields, path)) {
      continue;
    }
    if (path.empty() || path[0] != '/') continue;
    if (controllers.empty()) {
      least = std::min(least, smallest("/sys/fs/cgroup", path, quota_v2));
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      least = std::min(least, smallest("/sys/fs/cgroup/cpu", path, quota_v1));
    }
  }
  return least;
}

}  // namespace

int available_processors() {
  int processors = std::max(1u, std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t allowed;
  // The main thread's mask is the process's: the calling thread may have been pinned by its owner.
  if (sched_getaffinity(getpid(), sizeof allowed, &allowed) == 0) processors = CPU_COUNT(&allowed);
#endif
  // Rounded down: a thread more than the quota is stopped for a part of each period, and all others wait for it.
  return std::max(1, std::min(processors, static_cast<int>(cgroup_quota() + 0.01)));
}

}  // namespace slipstream
