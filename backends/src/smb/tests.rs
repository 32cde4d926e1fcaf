//! Against Samba, as `tests/lab/smb` starts it.

use super::*;
use crate::Credentials;
use crate::testing::conforms;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const SIZE: usize = 3_000_001;

/// A server with a directory, stopped with the test.
struct Samba {
    dir: TempDir,
}

impl Samba {
    /// None where Samba cannot be had, which is a failure where THINORIGIN_REQUIRE=1.
    fn start(test: &str) -> Option<Samba> {
        let is_there = Command::new("sh").args(["-c", "PATH=$PATH:/usr/sbin command -v smbd"]).output();
        if !rustix::process::geteuid().is_root() || !is_there.is_ok_and(|output| output.status.success()) {
            assert_ne!(std::env::var("THINORIGIN_REQUIRE").as_deref(), Ok("1"), "{test} needs smbd and root");
            eprintln!("SKIPPED: {test}: needs smbd and root");
            return None;
        }
        let samba = Samba { dir: TempDir::new_in("/var/tmp").unwrap() };
        fs::create_dir(samba.dir.path().join("root")).unwrap();
        samba.run("start");
        Some(samba)
    }

    fn run(&self, verb: &str) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/lab/smb");
        let mut command = Command::new(script);
        command.arg(verb).arg(self.dir.path().join("state"));
        if verb == "start" {
            command.arg("--root").arg(self.dir.path().join("root"));
        }
        assert!(command.status().unwrap().success(), "{verb}");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    /// A new file of bytes that say where they are.
    fn write(&self, name: &str, salt: u32) -> Bytes {
        let bytes: Vec<u8> =
            (0..SIZE as u32 / 4 + 1).flat_map(|word| (word ^ salt).to_le_bytes()).take(SIZE).collect();
        fs::write(self.file(name), &bytes).unwrap();
        Bytes::from(bytes)
    }

    fn location(&self, share: &str, path: &str) -> Location {
        let port = fs::read_to_string(self.dir.path().join("state/port")).unwrap();
        format!("smb://127.0.0.1:{}/{share}/{path}", port.trim()).parse().unwrap()
    }

    fn options(&self) -> Options {
        let credentials = Credentials::load(Some(&self.dir.path().join("state/credentials.toml"))).unwrap();
        let policy = Policy { deadline: Duration::from_secs(10), ..Policy::default() };
        Options::default().with_policy(policy).with_credentials(credentials)
    }

    async fn open(&self, share: &str, path: &str) -> Result<SmbSource, Error> {
        SmbSource::open(&self.location(share, path), &self.options()).await
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        self.run("stop");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_exact_from_every_share() {
    let Some(samba) = Samba::start("ranges_are_exact_from_every_share") else { return };
    let content = samba.write("a b \u{fc}.img", 0);
    fs::write(samba.file("empty"), b"").unwrap();
    // With a user, sealed, and for anybody.
    for share in ["images", "sealed", "open"] {
        let source = samba.open(share, "a%20b%20%C3%BC.img").await.unwrap();
        conforms(&source, &content).await.unwrap_or_else(|what| panic!("{share}: {what}"));
        let empty = samba.open(share, "empty").await.unwrap();
        conforms(&empty, &Bytes::new()).await.unwrap_or_else(|what| panic!("{share}: {what}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_is_named() {
    let Some(samba) = Samba::start("what_cannot_be_opened_is_named") else { return };
    samba.write("image", 0);
    fs::create_dir(samba.file("dir")).unwrap();
    let cases = [
        ("images", "missing", Kind::NotFound),
        ("elsewhere", "image", Kind::NotFound),
        ("images", "dir", Kind::Unsupported),
        // A share that the credentials say nothing about, and that is not for anybody.
        ("IMAGES", "image", Kind::Denied),
    ];
    for (share, path, kind) in cases {
        let error = samba.open(share, path).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(&format!("/{share}/{path}")), "{error}");
    }
    let credentials = samba.dir.path().join("state/credentials.toml");
    let text = fs::read_to_string(&credentials).unwrap();
    fs::write(&credentials, text.replace("a long secret", "a wrong secret")).unwrap();
    let error = samba.open("images", "image").await.unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{error}");
    assert!(!error.message.contains("secret"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_while_nobody_looks_is_an_error_for_good() {
    let Some(samba) = Samba::start("a_file_that_changes_while_nobody_looks_is_an_error_for_good") else {
        return;
    };
    samba.write("image", 0);
    let source = samba.open("images", "image").await.unwrap();
    samba.run("stop");
    let file = fs::File::options().write(true).open(samba.file("image")).unwrap();
    file.write_all_at(b"other", 1_000_000).unwrap();
    samba.run("start");
    let error = source.read(1_000_000..1_000_100).await.unwrap_err();
    assert_eq!(error.kind, Kind::Changed, "{error}");
    assert_eq!(source.read(0..100).await.unwrap_err().kind, Kind::Changed, "for good");
    assert_ne!(samba.open("images", "image").await.unwrap().identity(), source.identity());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_is_read_as_it_was() {
    let Some(samba) = Samba::start("a_file_that_is_replaced_is_read_as_it_was") else { return };
    let content = samba.write("image", 0);
    let source = samba.open("images", "image").await.unwrap();
    samba.write("next", 1);
    fs::rename(samba.file("next"), samba.file("image")).unwrap();
    conforms(&source, &content).await.expect("it is still there for who has it open");
    assert_ne!(samba.open("images", "image").await.unwrap().identity(), source.identity());
    // A server that starts again has only the new one.
    samba.run("stop");
    samba.run("start");
    assert_eq!(source.read(5..100).await.unwrap_err().kind, Kind::Changed);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_client_can_write_to_it() {
    let Some(samba) = Samba::start("no_other_client_can_write_to_it") else { return };
    samba.write("image", 0);
    let put = || {
        let port = fs::read_to_string(samba.dir.path().join("state/port")).unwrap();
        let mut smbclient = Command::new("smbclient");
        smbclient.args([
            "--configfile",
            "/dev/null",
            "--port",
            port.trim(),
            "--user",
            "reader%a long secret",
        ]);
        let other = samba.dir.path().join("other");
        fs::write(&other, "other bytes").unwrap();
        smbclient.args(["//127.0.0.1/images", "--command", &format!("put {} image", other.display())]);
        let output = smbclient.output().expect("smbclient comes with what the lab sets up");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let source = samba.open("images", "image").await.unwrap();
    let said = put();
    assert!(said.contains("SHARING_VIOLATION"), "{said}");
    source.read(0..100).await.unwrap();
    drop(source);
    let mut said = put();
    for _ in 0..50 {
        if !said.contains("SHARING_VIOLATION") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        said = put();
    }
    assert!(!said.contains("NT_STATUS"), "once it is closed: {said}");
    assert_eq!(samba.open("images", "image").await.unwrap().len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_a_pause() {
    let Some(samba) = Samba::start("a_server_that_comes_back_is_a_pause") else { return };
    let content = samba.write("image", 0);
    let source = Arc::new(samba.open("images", "image").await.unwrap());
    samba.run("stop");
    let reader = tokio::spawn({
        let source = source.clone();
        async move { source.read(0..SIZE as u64).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!reader.is_finished());
    samba.run("start");
    assert_eq!(reader.await.unwrap().unwrap(), content);
    samba.run("stop");
    let began = std::time::Instant::now();
    assert_eq!(source.read(0..100).await.unwrap_err().kind, Kind::Unreachable);
    assert!(began.elapsed() < Duration::from_secs(15));
}
