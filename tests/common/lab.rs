//! The servers of `tests/lab`, and an image that lies on them.

use super::{Dir, Server, THINORIGIN, assert_same_bytes, has, oracle, run, text};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Longest that a read may take when its server is gone: the program's own deadline, and some for a busy machine.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// The image's name on every server, and as locations spell it.
pub(crate) const NAME: &str = "disk \u{fc} 1.qcow2";
pub(crate) const SPELLED: &str = "disk%20%C3%BC%201.qcow2";

/// A server of `tests/lab`, stopped with the test.
pub(crate) struct Lab {
    script: PathBuf,
    pub(crate) state: PathBuf,
}

impl Lab {
    pub(crate) fn start(kind: &str, dir: &Dir, arguments: &[&str]) -> Lab {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab").join(kind);
        let lab = Lab { script, state: dir.join(&format!(".{kind}")) };
        lab.run("start", arguments);
        lab
    }

    /// Has the script do `verb`; what it says.
    pub(crate) fn run(&self, verb: &str, arguments: &[&str]) -> String {
        let output = run(text(&self.script), &[&[verb, text(&self.state)], arguments].concat());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn value(&self, key: &str) -> String {
        // The values are quoted for a shell.
        let line = format!(". {}/env; printf %s \"${key}\"", text(&self.state));
        String::from_utf8(run("bash", &["-euc", &line]).stdout).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A failure to stop it is not what a test is about.
        let _ = Command::new(&self.script).arg("stop").arg(&self.state).status();
    }
}

/// Whether the test runs as root.
pub(crate) fn is_root(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        assert_ne!(std::env::var("THINORIGIN_REQUIRE").as_deref(), Ok("1"), "{test} needs root");
        eprintln!("SKIPPED: {test}: needs root");
        return false;
    }
    true
}

/// Whether the NFS server can run here: it opens files by handle, which is root's alone.
pub(crate) fn has_nfs(test: &str) -> bool {
    is_root(test) && has(test, &["ganesha.nfsd", "cc"])
}

/// Whether the S3 server is here: it is no package of a distribution.
pub(crate) fn has_s3(test: &str) -> bool {
    let line = ". tests/lab/lib; test -x $LAB_TOOLS/bin/weed";
    let found = Command::new("bash").args(["-c", line]).current_dir(env!("CARGO_MANIFEST_DIR")).status();
    if !found.unwrap().success() {
        assert_ne!(std::env::var("THINORIGIN_REQUIRE").as_deref(), Ok("1"), "{test} needs SeaweedFS");
        eprintln!("SKIPPED: {test}: needs SeaweedFS");
        return false;
    }
    has(test, &["curl"])
}

/// A compressed image and the bytes that a guest sees.
pub(crate) fn image(dir: &Dir) -> (PathBuf, Vec<u8>) {
    let raw = dir.guest_disk("guest.raw");
    let image = dir.join(NAME);
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&image)]);
    let wanted = oracle(&image, "qcow2");
    (image, wanted)
}

pub(crate) fn write_credentials(path: &Path, sections: &str) {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(sections.as_bytes()).unwrap();
}

pub(crate) fn check(dir: &Dir, server: &Server, export: &str, wanted: &[u8]) {
    let copy = dir.join("copy");
    run("nbdcopy", &[&server.uri(export), text(&copy)]);
    assert_same_bytes(export, &fs::read(&copy).unwrap(), wanted);
    fs::remove_file(&copy).unwrap();
}

/// What `thinorigin` does with `arguments`: its exit code, and what it says.
pub(crate) fn outcome(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(THINORIGIN).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}
