//! Clients as people have them: libnbd's tools, qemu, fio. Each reads the same image, byte for byte.

#[path = "../examples/memory/disk.rs"]
mod disk;

use disk::{Disk, One};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use thinorigin_nbd::{Limits, Server};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A server of an image with data and holes, whose size is whole sectors (qemu rounds up).
struct Lab {
    directory: tempfile::TempDir,
    runtime: Runtime,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let file = File::create(&path).unwrap();
        for (at, byte) in [(0, 1_u8), (3 << 20, 2), (7 << 20, 3)] {
            let data: Vec<u8> =
                (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ byte).collect();
            file.write_all_at(&data, at).unwrap();
        }
        let size = (9 << 20) + 512;
        file.set_len(size).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let disk = Disk::open(size, Some(File::open(path).unwrap())).unwrap();
        let server = Server::new(Arc::new(One(Arc::new(disk))), Limits::default());
        let context = runtime.enter();
        let listener = tokio::net::UnixListener::bind(directory.path().join("socket")).unwrap();
        let stopped = stop.clone();
        let serving = runtime.spawn(async move { server.serve(listener.into(), stopped).await });
        drop(context);
        Self { directory, runtime, stop, serving }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.path("socket").display())
    }

    /// Runs a client to its end and answers what it prints; `None` if it is not installed.
    fn run(&self, program: &str, arguments: &[&str]) -> Option<String> {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let complaint = String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.success(),
                    "{program} {arguments:?}: {}\n{text}{complaint}",
                    output.status
                );
                Some(text)
            }
            Err(error) => {
                assert!(std::env::var_os("THINORIGIN_REQUIRE").is_none(), "{program}: {error}");
                eprintln!("SKIPPED: nbd clients: needs {program}");
                None
            }
        }
    }

    fn assert_same(&self, copy: &Path) {
        assert!(
            fs::read(copy).unwrap() == fs::read(self.path("image")).unwrap(),
            "{} differs",
            copy.display()
        );
    }

    /// Nobody is left behind when the server stops.
    fn end(self) {
        self.stop.cancel();
        self.runtime.block_on(self.serving).unwrap().unwrap();
    }
}

#[test]
fn libnbd_tools() {
    let lab = Lab::new();
    if let Some(text) = lab.run("nbdinfo", &[&lab.uri()]) {
        for expected in
            ["export-size: 9437696", "is_read_only: true", "can_multi_conn: true", "x-thinorigin:cached"]
        {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }
    if let Some(text) = lab.run("nbdinfo", &["--map", &lab.uri()]) {
        let extents: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
        let mib = |n: u64| (n << 20).to_string();
        let expected = [
            [mib(0), mib(1), "0".into()],
            [mib(1), mib(2), "3".into()],
            [mib(3), mib(1), "0".into()],
            [mib(4), mib(3), "3".into()],
            [mib(7), mib(1), "0".into()],
            [mib(8), ((1 << 20) + 512).to_string(), "3".into()],
        ];
        assert_eq!(extents, expected);
    }
    for (name, options) in
        [("copy", &[][..]), ("whole", &["--no-extents"]), ("one", &["--connections=1", "--requests=1"])]
    {
        let copy = lab.path(name);
        let uri = lab.uri();
        let arguments = [options, &[uri.as_str(), copy.to_str().unwrap()]].concat();
        if lab.run("nbdcopy", &arguments).is_some() {
            lab.assert_same(&copy);
        }
    }
    lab.end();
}

#[test]
fn qemu() {
    let lab = Lab::new();
    if let Some(text) = lab.run(
        "qemu-img",
        &["info", "--image-opts", &format!("driver=nbd,path={},export=disk", lab.path("socket").display())],
    ) {
        assert!(text.contains("9437696 bytes"), "{text}");
    }
    lab.run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &lab.uri(), "image"]);
    if lab
        .run("qemu-img", &["convert", "-f", "raw", "-O", "raw", "-m", "16", "-W", &lab.uri(), "converted"])
        .is_some()
    {
        lab.assert_same(&lab.path("converted"));
    }
    lab.run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 1M 2M", "-c", "read 100 5000", &lab.uri()]);
    lab.end();
}

#[test]
fn more_of_qemu_and_libnbd() {
    let lab = Lab::new();
    let socket = lab.path("socket");
    if let Some(text) = lab.run("qemu-nbd", &["--list", "-k", socket.to_str().unwrap()]) {
        assert!(text.contains("'disk'") && text.contains("qemu:allocation-depth"), "{text}");
    }
    // A disk of its own on top of the export: writes stay there.
    let (uri, over) = (lab.uri(), lab.path("over.qcow2"));
    let over = over.to_str().unwrap();
    if lab.run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &uri, over]).is_some() {
        lab.run(
            "qemu-io",
            &[
                "-f",
                "qcow2",
                "-c",
                "write -P 9 1M 64k",
                "-c",
                "read -P 9 1M 64k",
                "-c",
                "read -P 0 1100k 64k",
                over,
            ],
        );
    }
    lab.run("qemu-img", &["bench", "-q", "-f", "raw", "-c", "2000", "-d", "64", "-s", "4096", &uri]);
    if let Some(dump) = lab.run("nbddump", &["--length=512", &uri]) {
        assert!(dump.starts_with("0000000000: 01"), "{dump}");
    }
    lab.end();
}

/// nbdkit's own client, with all that its filters ask of it.
#[test]
fn nbdkit_as_a_proxy() {
    let lab = Lab::new();
    let (uri, copy) = (format!("uri={}", lab.uri()), lab.path("copy"));
    let run = format!("nbdcopy \"$uri\" {}", copy.display());
    for filter in ["cow", "cache", "readahead"] {
        let filter = format!("--filter={filter}");
        if lab.run("nbdkit", &["-r", "-U", "-", &filter, "nbd", &uri, "--run", &run]).is_some() {
            lab.assert_same(&copy);
            fs::remove_file(&copy).unwrap();
        }
    }
    lab.end();
}

#[test]
fn fio() {
    let lab = Lab::new();
    let uri = format!("--uri={}", lab.uri());
    let arguments = [
        "--name=read",
        "--ioengine=nbd",
        &uri,
        "--rw=randread",
        "--bs=4k",
        "--iodepth=32",
        "--number_ios=5000",
    ];
    lab.run("fio", &arguments);
    lab.end();
}

#[test]
fn libnbd_in_python() {
    let lab = Lab::new();
    // The binding belongs to the system's Python.
    let python = "/usr/bin/python3";
    let installed = Command::new(python).args(["-c", "import nbd"]).stderr(Stdio::null()).status();
    if installed.is_ok_and(|status| status.success()) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/libnbd.py");
        let said = lab.run(python, &[script, &lab.uri()]).unwrap_or_default();
        assert!(said.contains("commands"), "{said}");
        println!("{said}");
    } else {
        assert!(std::env::var_os("THINORIGIN_REQUIRE").is_none(), "no libnbd for Python");
        eprintln!("SKIPPED: nbd clients: needs python3-libnbd");
    }
    lab.end();
}
