import Platform
import Testing

@Suite struct ProcessorsTests {
    private func allowed(_ affinity: Int, _ groups: String, _ files: [String: String]) -> Int {
        Processors.allowed(affinity: affinity, groups: groups) { files[$0] }
    }

    @Test("Without a quota the cpuset decides")
    func cpuset() {
        #expect(allowed(3, "", [:]) == 3)
        #expect(allowed(0, "", [:]) == 1)
        #expect(allowed(8, "0::/\n", ["/sys/fs/cgroup/cpu.max": "max 100000\n"]) == 8)
        #expect(allowed(8, "4:cpu,cpuacct:/a\n", ["/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "-1\n"]) == 8)
    }

    @Test(
        "A quota of cgroup v2 is rounded up to whole CPUs and never beyond the cpuset",
        arguments: [
            ("200000 100000\n", 2), ("150000 100000", 2), ("100001 100000\n", 2), ("50000 100000\n", 1), ("1000 100000\n", 1),
            ("1600000 100000\n", 8), ("30000 10000\n", 3),
        ])
    func quota(_ text: String, _ count: Int) {
        #expect(allowed(8, "0::/system.slice/codex-lb.service\n", ["/sys/fs/cgroup/system.slice/codex-lb.service/cpu.max": text]) == count)
    }

    @Test("The least of all groups above holds, and a container's own, which it sees as the topmost")
    func ancestors() {
        let files = [
            "/sys/fs/cgroup/a/b/cpu.max": "700000 100000\n", "/sys/fs/cgroup/a/cpu.max": "300000 100000\n",
            "/sys/fs/cgroup/cpu.max": "500000 100000\n",
        ]
        #expect(allowed(8, "0::/a/b\n", files) == 3)
        #expect(allowed(8, "0::/elsewhere\n", files) == 5)
        #expect(allowed(2, "0::/a/b\n", files) == 2)
    }

    @Test("cgroup v1: quota and period are files of their own, under the controllers' names or under cpu")
    func v1() {
        func files(_ mount: String) -> [String: String] {
            ["/sys/fs/cgroup/\(mount)/cpu.cfs_quota_us": "250000\n", "/sys/fs/cgroup/\(mount)/cpu.cfs_period_us": "100000\n"]
        }
        let groups = "11:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/docker/x\n"
        #expect(allowed(8, groups, files("cpu,cpuacct/docker/x")) == 3)
        #expect(allowed(8, groups, files("cpu/docker/x")) == 3)
        #expect(allowed(8, groups, files("cpu,cpuacct")) == 3)
        #expect(allowed(8, groups, files("cpuset")) == 8)
        #expect(allowed(8, groups, ["/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n"]) == 8, "a quota without its period is none")
    }

    @Test(
        "What is no such file changes nothing",
        arguments: ["", "max", "0 100000", "100000 0", "-5 100000", "x y", "99999999999999999999 1", "1 2 3", "\u{0}"])
    func nonsense(_ text: String) {
        #expect(allowed(4, "0::/\nnonsense\n::\n:cpu\n", ["/sys/fs/cgroup/cpu.max": text]) == 4)
    }

    @Test("This process has at least one")
    func here() { #expect(Processors.allowed >= 1) }
}
