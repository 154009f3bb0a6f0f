internal import CPlatform

#if canImport(Glibc)
    internal import Glibc
#endif

/// How many CPUs this process may keep busy: those of its cpuset, or fewer where a control group's quota says so. What the host has counts for
/// nothing: in a container or a slice more workers than that would only wait for each other.
public enum Processors {
    /// At the time of the call.
    public static var allowed: Int {
        let affinity = codexlb_affinity_count()
        let usable = affinity > 0 ? Int(affinity) : sysconf(Int32(_SC_NPROCESSORS_ONLN))
        return allowed(affinity: usable, groups: Process.text("/proc/self/cgroup") ?? "") { Process.text($0) }
    }

    /// `affinity`: CPUs of sched_getaffinity(2). `groups`: `/proc/self/cgroup`. `read` gives a file's text, nil where there is none. A quota
    /// of half a CPU more counts as a whole one.
    public static func allowed(affinity: Int, groups: String, read: (String) -> String?) -> Int {
        var count = max(1, affinity)
        for line in groups.split(separator: "\n") {
            // hierarchy:controllers:path (cgroups(7))
            let parts = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
            guard parts.count == 3 else { continue }
            if parts[0] == "0", parts[1].isEmpty {
                for path in ancestors(parts[2]) {
                    guard let text = read("/sys/fs/cgroup\(path)/cpu.max") else { continue }
                    let words = text.split(whereSeparator: \.isWhitespace)
                    if words.count == 2 { limit(&count, quota: Int(words[0]), period: Int(words[1])) }
                }
            } else if parts[1].split(separator: ",").contains("cpu") {
                // The hierarchy is mounted under its controllers' names, or cpu leads there.
                for mount in [String(parts[1]), "cpu"] {
                    for path in ancestors(parts[2]) {
                        let group = "/sys/fs/cgroup/\(mount)\(path)"
                        limit(&count, quota: number(read(group + "/cpu.cfs_quota_us")), period: number(read(group + "/cpu.cfs_period_us")))
                    }
                }
            }
        }
        return count
    }

    /// The group and all above it: a limit of any of them holds. The topmost is what a container sees as its own.
    private static func ancestors(_ path: Substring) -> [Substring] {
        var path = path == "/" ? "" : path
        var all = [path]
        while let slash = path.lastIndex(of: "/") {
            path = path[..<slash]
            all.append(path)
        }
        return all
    }

    private static func number(_ text: String?) -> Int? { text.flatMap { Int($0.prefix { !$0.isWhitespace }) } }

    /// `max` and -1 are no limit.
    private static func limit(_ count: inout Int, quota: Int?, period: Int?) {
        guard let quota, let period, quota > 0, period > 0 else { return }
        count = min(count, max(1, quota / period + (quota % period == 0 ? 0 : 1)))
    }
}
