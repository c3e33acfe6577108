use std::{fs::File, io, os::fd::AsRawFd, path::PathBuf, process::Command};

use nix::sched::{CloneFlags, unshare};
use slice_netop::kernel::netns;

/// A network namespace that ends with its last user.
pub struct Space {
    file: File,
    name: String,
}

impl Space {
    pub fn new(name: &str) -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let space = Self {
            file,
            name: name.to_owned(),
        };
        space.ip("link set lo up");
        space
    }

    /// A path by which this process can open it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Runs something inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        netns::within(&self.path(), work).unwrap_or_else(|error| panic!("in {}: {error}", self.name))
    }

    /// Runs a command inside; its output, where it succeeds.
    pub fn command(&self, program: &str, arguments: &str) -> Result<String, String> {
        let output = self.run(|| Command::new(program).args(arguments.split_whitespace()).output());
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        match self.command("ip", arguments) {
            Ok(output) => output,
            Err(error) => panic!(
                "ip {arguments} in {}: {error}\nlook inside: nsenter --net=/proc/{}/fd/{}",
                self.name,
                std::process::id(),
                self.file.as_raw_fd()
            ),
        }
    }
}
