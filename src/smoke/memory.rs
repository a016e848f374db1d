//! How much memory a run may take.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// Memory in bytes that this program may still take: the least of what the system can give, what the limits of its
/// control groups leave, and what `ulimit -d` leaves; `None` where the system does not tell.
pub fn available_memory() -> Option<u64> {
    let root = Path::new("/");
    [of_machine(root), of_groups(root), of_process(root)].into_iter().flatten().min()
}

fn of_machine(root: &Path) -> Option<u64> {
    kibibytes(&fs_err::read_to_string(root.join("proc/meminfo")).ok()?, "MemAvailable:")
}

/// What the control group and those above it leave: files that they keep in memory can be taken back.
fn of_groups(root: &Path) -> Option<u64> {
    let groups = fs_err::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let top = root.join("sys/fs/cgroup");
    let all = Path::new(own).ancestors().map(|group| top.join(group));
    all.filter_map(|group| left(&group)).min()
}

fn left(group: &Path) -> Option<u64> {
    let read = |name: &str| fs_err::read_to_string(group.join(name)).ok();
    let most: u64 = read("memory.max")?.trim().parse().ok()?;
    let taken: u64 = read("memory.current")?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let of = |key: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    Some(most.saturating_sub(taken.saturating_sub(of("inactive_file") + of("active_file"))))
}

fn of_process(root: &Path) -> Option<u64> {
    let most = getrlimit(Resource::Data).current?;
    let taken = kibibytes(&fs_err::read_to_string(root.join("proc/self/status")).ok()?, "VmData:")?;
    Some(most.saturating_sub(taken))
}

fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|number| number << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsio::{WriteOptions, write_atomic};

    #[test]
    fn the_tightest_control_group_counts_and_its_cached_files_are_free() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            write_atomic(&root.path().join(path), text.as_bytes(), &WriteOptions::default()).unwrap();
        };
        write("proc/meminfo", "MemTotal: 99 kB\nMemAvailable:   2048 kB\n");
        assert_eq!((of_machine(root.path()), of_groups(root.path())), (Some(2 << 20), None));
        write("proc/self/cgroup", "0::/lab.slice/smoke.service\n");
        write("sys/fs/cgroup/lab.slice/memory.max", "1000\n");
        write("sys/fs/cgroup/lab.slice/memory.current", "900\n");
        write("sys/fs/cgroup/lab.slice/memory.stat", "anon 200\nfile 700\nactive_file 300\ninactive_file 400\n");
        write("sys/fs/cgroup/lab.slice/smoke.service/memory.max", "max\n");
        assert_eq!(of_groups(root.path()), Some(800));
        write("sys/fs/cgroup/lab.slice/smoke.service/memory.max", "500\n");
        write("sys/fs/cgroup/lab.slice/smoke.service/memory.current", "600\n");
        assert_eq!(of_groups(root.path()), Some(0));
    }
}
