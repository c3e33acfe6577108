//! Threads that get only a share of a processor each, so that a machine of two shows what more threads carry where
//! there are processors for them. Needs the cpu controller of cgroup version 1, whose tasks are threads.

use std::{fs, path::PathBuf};

/// A thread runs its share of this and is stopped for the rest. The kernel takes shares of a millisecond and more.
const PERIOD_MICROS: u64 = 10_000;

/// The groups of some threads; dropping it sets them free.
pub(crate) struct Shares(Vec<PathBuf>);

impl Shares {
    /// Limits each data thread of these gateways to so many hundredths of a processor.
    pub(crate) fn limit(pids: &[u32], hundredths: u64) -> Self {
        let mut groups = Vec::new();
        for pid in pids {
            for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
                let task = task.unwrap();
                let name = fs::read_to_string(task.path().join("comm")).unwrap();
                if !name.starts_with("data-") {
                    continue;
                }
                let thread = task.file_name().into_string().unwrap();
                let group = PathBuf::from(format!("/sys/fs/cgroup/cpu/weft-bench-{thread}"));
                fs::create_dir(&group).unwrap_or_else(|error| panic!("{}: {error}", group.display()));
                groups.push(group.clone());
                let write = |file: &str, text: String| fs::write(group.join(file), text).unwrap();
                write("cpu.cfs_period_us", PERIOD_MICROS.to_string());
                write("cpu.cfs_quota_us", (PERIOD_MICROS * hundredths / 100).to_string());
                write("tasks", thread);
            }
        }
        Self(groups)
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        for group in &self.0 {
            let threads = fs::read_to_string(group.join("tasks")).unwrap_or_default();
            for thread in threads.lines() {
                let _ = fs::write("/sys/fs/cgroup/cpu/tasks", thread);
            }
            let _ = fs::remove_dir(group);
        }
    }
}
