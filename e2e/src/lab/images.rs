//! The images that every node has from the start, and a containerd state
//! directory in which they are imported already.
//!
//! Importing them on each node at boot costs seconds of every core. They are
//! imported once, and a node gets the directory as hard links: containerd never
//! changes a blob or an unpacked layer in place, only its databases, which are
//! copied.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::process::{Identity, run};
use super::programs::Cache;
use crate::image::{Image, Layer, base_layer, digest_of};
use crate::platform::{Architecture, Platform};
use crate::progress::Progress;

/// The images by file name.
pub const BASE: [&str; 4] = ["pause", "busybox", "coredns", "agnhost"];
const START: Duration = Duration::from_secs(30);

/// Writes the image tars that are absent or outdated.
pub fn build(cache: &Cache) -> Result<()> {
    let folder = cache.images();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let architecture = Architecture::here()?;
    let write = |name: &str, entrypoint: &str, layer: Layer| {
        let image = Image {
            name: format!("localhost/{name}:1"),
            architecture,
            entrypoint: vec![entrypoint.to_owned()],
            user: None,
            layers: vec![base_layer(), layer],
        };
        image.write(&folder.join(format!("{name}.tar")))
    };
    write("pause", "/pause", Layer::default().copy(pause(cache)?, "pause"))?;
    write("busybox", "/bin/sh", busybox()?)?;
    write(
        "coredns",
        "/coredns",
        Layer::default().copy(cache.bin().join("coredns"), "coredns"),
    )?;
    write(
        "agnhost",
        "/agnhost",
        Layer::default().copy(cache.bin().join("agnhost"), "agnhost"),
    )?;
    Ok(())
}

/// Kubernetes' own sandbox process, compiled from the source that came with the module.
fn pause(cache: &Cache) -> Result<PathBuf> {
    let target = cache.bin().join("pause");
    if !target.exists() {
        let source = cache.kubernetes_source()?.join("build/pause/linux/pause.c");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-Os", "-static", "-DVERSION=lab", "-o"])
            .arg(&target)
            .arg(&source);
        run(&mut compiler).context("compile the pause program (Debian: apt-get install gcc libc6-dev)")?;
    }
    Ok(target)
}

/// Every applet of busybox as a link, and its libraries: which of Debian's two packages is there is not ours to say, as one
/// excludes the other.
pub fn busybox() -> Result<Layer> {
    let program = super::preflight::find("busybox").context("no busybox: run `weft-lab setup`")?;
    let applets = run(Command::new(&program).arg("--list"))?;
    let layer = Layer::default()
        .libraries_of(&Platform::here()?, [&*program])?
        .copy(&program, "bin/busybox");
    // The list names busybox itself, which must not become a link to itself.
    let applets = applets
        .lines()
        .filter(|applet| *applet != "busybox" && !applet.is_empty());
    Ok(applets.fold(layer, |layer, applet| {
        layer.link(&format!("bin/{applet}"), "/bin/busybox")
    }))
}

/// Imports the images into a state directory, unless it holds exactly these already.
pub fn prepare(cache: &Cache, progress: &Progress) -> Result<()> {
    let target = cache.containerd();
    let wanted = contents(cache)?;
    let noted = target.join("contents");
    if fs::read_to_string(&noted).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    let _ = fs::remove_dir_all(&target);
    fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
    // In a process of its own: it takes a mount namespace, which is for good.
    let mut import = Command::new(std::env::current_exe().context("find this program")?);
    run(import
        .args(["machine", "import"])
        .arg(&target)
        .arg(cache.images()))
    .context("import the images")?;
    fs::write(&noted, wanted).context("note what was imported")?;
    progress.done("images imported into a containerd directory");
    Ok(())
}

fn contents(cache: &Cache) -> Result<String> {
    let containerd = run(Command::new("containerd").arg("--version"))?;
    let mut text = containerd;
    for name in BASE {
        text += &digest_of(&cache.images().join(format!("{name}.tar")))?;
        text.push('\n');
    }
    Ok(text)
}

/// Runs containerd on `root` just long enough to import all tars of `images`. Leaves nothing outside `root`.
pub fn import(root: &Path, images: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace (needs root)")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("mount an own /run")?;
    let socket = "/run/import.sock";
    let config = format!(
        "version = 2\nroot = \"{}\"\nstate = \"/run/import\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{socket}\"\n",
        root.display()
    );
    fs::write("/run/import.toml", config).context("write containerd's configuration")?;
    let log = fs::File::create("/run/import.log").context("create a log")?;
    let mut containerd = Command::new("containerd")
        .args(["--config", "/run/import.toml"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("run containerd")?;
    let result = wait_socket(Path::new(socket), START).and_then(|()| {
        BASE.iter().try_for_each(|name| {
            let tar = images.join(format!("{name}.tar"));
            let mut ctr = Command::new("ctr");
            run(ctr
                .args(["--address", socket, "-n", "k8s.io", "images", "import"])
                .arg(tar))
            .map(drop)
        })
    });
    // SIGTERM lets it close its databases.
    let identity = Identity::of(containerd.id().cast_signed())?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(identity.pid),
        nix::sys::signal::Signal::SIGTERM,
    )
    .context("end containerd")?;
    containerd.wait().context("wait for containerd")?;
    result.with_context(|| fs::read_to_string("/run/import.log").unwrap_or_default())
}

/// Waits until somebody listens on a unix socket.
pub fn wait_socket(path: &Path, deadline: Duration) -> Result<()> {
    wait_until(&path.display().to_string(), deadline, || {
        UnixStream::connect(path).is_ok()
    })
}

/// Waits until somebody listens on a TCP address.
pub fn wait_tcp(address: &str, deadline: Duration) -> Result<()> {
    wait_until(address, deadline, || TcpStream::connect(address).is_ok())
}

/// The kernel tells nobody that a listener has appeared: ask again until it has.
fn wait_until(what: &str, deadline: Duration, there: impl Fn() -> bool) -> Result<()> {
    let until = Instant::now() + deadline;
    while !there() {
        if Instant::now() > until {
            bail!("nobody listens on {what} after {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    Ok(())
}

/// Gives a node its own containerd directory: links to files that never change, copies of those that do.
pub fn install(template: &Path, target: &Path) -> Result<()> {
    for entry in fs::read_dir(template).with_context(|| format!("read {}", template.display()))? {
        let entry = entry.with_context(|| format!("read {}", template.display()))?;
        if entry.file_name() != "contents" {
            clone_tree(&entry.path(), &target.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn clone_tree(source: &Path, target: &Path) -> Result<()> {
    let kind = fs::symlink_metadata(source).with_context(|| format!("look at {}", source.display()))?;
    let context = || format!("make {}", target.display());
    if kind.is_symlink() {
        let to = fs::read_link(source).with_context(|| format!("read {}", source.display()))?;
        return symlink(to, target).with_context(context);
    }
    if !kind.is_dir() {
        let database = source.extension().is_some_and(|extension| extension == "db");
        if database || fs::hard_link(source, target).is_err() {
            fs::copy(source, target).with_context(context)?;
        }
        return Ok(());
    }
    fs::create_dir_all(target).with_context(context)?;
    fs::set_permissions(target, kind.permissions()).with_context(context)?;
    for entry in fs::read_dir(source).with_context(|| format!("read {}", source.display()))? {
        let entry = entry.with_context(|| format!("read {}", source.display()))?;
        clone_tree(&entry.path(), &target.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn databases_are_copied_and_the_rest_is_linked() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("s"), folder.path().join("t"));
        fs::create_dir_all(source.join("content/blobs")).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(source.join("content/blobs/x"), "blob").unwrap();
        fs::write(source.join("meta.db"), "database").unwrap();
        symlink("/bin/busybox", source.join("sh")).unwrap();
        install(&source, &target).unwrap();
        let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
        assert_eq!(
            inode(source.join("content/blobs/x")),
            inode(target.join("content/blobs/x"))
        );
        assert_ne!(inode(source.join("meta.db")), inode(target.join("meta.db")));
        assert_eq!(
            fs::read_link(target.join("sh")).unwrap(),
            Path::new("/bin/busybox")
        );
    }
}
