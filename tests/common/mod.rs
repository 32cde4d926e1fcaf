//! What the tests of the programs share: a directory that goes away, tools of others, servers that end with the test.
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod lab;
pub(crate) mod naming;
pub(crate) mod nbd;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The program under test.
pub(crate) const THINORIGIN: &str = env!("CARGO_BIN_EXE_thinorigin");

/// True when every one of `tools` is installed. Otherwise says that `test` is skipped, or panics where the environment
/// says that nothing may be.
pub(crate) fn has(test: &str, tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |tool: &&&str| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir| dir.join(tool).exists())
    };
    let Some(missing) = tools.iter().find(|tool| !found(tool)) else { return true };
    assert_ne!(std::env::var("THINORIGIN_REQUIRE").as_deref(), Ok("1"), "{test} needs {missing}");
    eprintln!("SKIPPED: {test}: needs {missing}");
    false
}

/// Runs a command to its end, which must be a success; its output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Fails unless `holds` does soon.
pub(crate) fn becomes_true(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "still not true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `path` as text for a command line.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path of a test is UTF-8")
}

/// A directory of a test.
pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    pub(crate) fn new() -> Self {
        Dir(tempfile::Builder::new().prefix("thinorigin-test-").tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a guest's disk: text, noise and holes with their borders within clusters, 9 MiB and a few sectors long.
    pub(crate) fn guest_disk(&self, name: &str) -> PathBuf {
        let mut disk = vec![0; 9 * 1024 * 1024 + 7 * 512];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut noise = |bytes: &mut [u8]| {
            for chunk in bytes.chunks_mut(8) {
                // xorshift64: what matters is only that it does not compress.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
            }
        };
        noise(&mut disk[..200_000]);
        noise(&mut disk[3_000_000..3_000_512]);
        let end = disk.len();
        noise(&mut disk[end - 70_000..]);
        for (number, line) in disk[4_000_000..6_500_000].chunks_mut(32).enumerate() {
            let words = format!("line {number:>8} of a text file   \n");
            line.copy_from_slice(&words.as_bytes()[..line.len()]);
        }
        let path = self.join(name);
        fs::write(&path, disk).unwrap();
        path
    }
}

/// The guest's bytes of an image, as qemu-img decodes them.
pub(crate) fn oracle(image: &Path, format: &str) -> Vec<u8> {
    let raw = image.with_extension("oracle");
    run("qemu-img", &["convert", "-f", format, "-O", "raw", text(image), text(&raw)]);
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(&raw).unwrap();
    bytes
}

/// Fails unless two disks are the same, and says where they differ.
pub(crate) fn assert_same_bytes(what: &str, got: &[u8], wanted: &[u8]) {
    assert_eq!(got.len(), wanted.len(), "{what}: length");
    if let Some(at) = got.iter().zip(wanted).position(|(got, wanted)| got != wanted) {
        panic!("{what}: first difference at {at:#x}: {:#x} instead of {:#x}", got[at], wanted[at]);
    }
}

/// A `thinorigin serve` on a unix socket, killed with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) socket: PathBuf,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts one in `dir` and waits until it accepts connections.
    pub(crate) fn start(dir: &Dir, arguments: &[&str]) -> Self {
        Server::start_in(dir, &[], arguments)
    }

    /// The same, with more in its environment.
    pub(crate) fn start_in(dir: &Dir, environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let socket = dir.join("nbd.sock");
        let mut child = Command::new(THINORIGIN)
            .args(["serve", "--unix", text(&socket)])
            .args(arguments)
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.lines().any(|line| line.starts_with("ready")) {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "the server ended: {said}");
        }
        let log = Arc::new(Mutex::new(said));
        // What it logs later is read to its end, so that a full pipe never holds the server up.
        let more = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                *more.lock().unwrap() += &(line + "\n");
            }
        });
        Server { child, socket, log }
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The NBD address of an export.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", text(&self.socket))
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the server to end, as a service manager does; it must do so with success.
    pub(crate) fn terminate(mut self) {
        run("kill", &["-TERM", &self.child.id().to_string()]);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "after SIGTERM: {status}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where the test asked it to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An nginx that serves a directory, stopped with the test: `tests/lab/http`.
pub(crate) struct Http {
    state: PathBuf,
    pub(crate) url: String,
    log: PathBuf,
}

impl Http {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/http");

    pub(crate) fn start(root: &Dir) -> Self {
        let state = root.join(".http");
        run(Self::SCRIPT, &["start", text(&state), "--root", text(root.path())]);
        let env = fs::read_to_string(state.join("env")).unwrap();
        let value = |key: &str| {
            let line = env.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("no {key} in {env}")).to_owned()
        };
        Http { url: value("HTTP_URL"), log: value("HTTP_LOG").into(), state }
    }

    /// Ends the server. What it serves can be asked for again after [`start_again`](Self::start_again).
    pub(crate) fn stop(&self) {
        run(Self::SCRIPT, &["stop", text(&self.state)]);
    }

    /// Starts it where it was.
    pub(crate) fn start_again(&self, root: &Dir) {
        run(Self::SCRIPT, &["start", text(&self.state), "--root", text(root.path())]);
    }

    /// How many requests were answered so far.
    pub(crate) fn requests(&self) -> usize {
        fs::read_to_string(&self.log).unwrap().lines().count()
    }

    /// How many bytes of bodies were sent so far.
    pub(crate) fn bytes_sent(&self) -> u64 {
        let log = fs::read_to_string(&self.log).unwrap();
        log.lines().map(|line| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap()).sum()
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        // A failure to stop it is not what a test is about.
        let _ = Command::new(Self::SCRIPT).args(["stop", text(&self.state)]).status();
    }
}
