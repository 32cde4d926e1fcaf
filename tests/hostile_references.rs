//! Images that name files which are not theirs to name. Each test is a kind of hole that disk readers have had; the
//! image goes through the program as a user's upload would.

mod common;

use common::naming::{descriptor, descriptor_over, qcow2, vhd_over};
use common::{Dir, THINORIGIN, has, run, text};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What must never come out.
const SECRET: &[u8] = b"a secret of the host\n";

/// A directory with the images, and a secret beside it.
struct Host {
    dir: Dir,
    secret: PathBuf,
    images: PathBuf,
}

impl Host {
    fn new() -> Self {
        let dir = Dir::new();
        let (secret, images) = (dir.join("secret"), dir.join("images"));
        fs::write(&secret, SECRET.repeat(100)).unwrap();
        fs::create_dir(&images).unwrap();
        Host { dir, secret, images }
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.images.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Every command that opens images refuses this one, says so with the name, and gives nothing away.
    fn refuses(&self, image: &Path, word: &str) {
        for command in ["info", "map", "check", "cat"] {
            let output = thinorigin(&[command, "--no-cache", text(image)]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{command} of {}: {said}", image.display());
            assert!(output.stdout.is_empty(), "{command} printed something");
            assert!(said.contains(word) && said.lines().count() == 1, "{command}: no {word:?} in {said}");
        }
    }
}

fn thinorigin(arguments: &[&str]) -> Output {
    // A hang would be a hole, too.
    Command::new("timeout").arg("20").arg(THINORIGIN).args(arguments).output().unwrap()
}

/// Names that lead out of an image's directory, in all the ways readers have followed.
fn ways_out(secret: &Path) -> Vec<String> {
    let secret = text(secret);
    vec![
        secret.to_owned(),
        "../secret".to_owned(),
        format!("file:{secret}"),
        format!("file://{secret}"),
        format!("json:{{\"driver\":\"file\",\"filename\":\"{secret}\"}}"),
        format!("raw:{secret}"),
        format!("fat:{secret}"),
        "http://169.254.169.254/latest/meta-data/iam".to_owned(),
        "https://127.0.0.1/x".to_owned(),
        "nbd://127.0.0.1:10809/x".to_owned(),
        "nbd:unix:/run/x.sock".to_owned(),
        "ssh://root@127.0.0.1/etc/shadow".to_owned(),
        "s3://bucket/key".to_owned(),
        "smb://127.0.0.1/c$/x".to_owned(),
        "rbd:pool/image".to_owned(),
        "/dev/sda".to_owned(),
        "/dev/zero".to_owned(),
        "/proc/self/environ".to_owned(),
        "/dev/fdset/0".to_owned(),
        "fd:0".to_owned(),
    ]
}

/// CVE-2015-1850, CVE-2015-5163: an uploaded overlay shows a file of the host through its backing name.
#[test]
fn a_backing_file_of_the_host() {
    let host = Host::new();
    for name in ways_out(&host.secret) {
        host.refuses(&host.write("a.qcow2", qcow2(&name, false)), "refused to open");
    }
}

/// CVE-2024-32498, CVE-2024-4467: the same through an external data file, which even looking at an image opened.
#[test]
fn a_data_file_of_the_host() {
    let host = Host::new();
    for name in ways_out(&host.secret) {
        host.refuses(&host.write("a.qcow2", qcow2(&name, true)), "refused to open");
    }
}

/// CVE-2022-47951: the same through an extent of a vmdk descriptor.
#[test]
fn an_extent_of_the_host() {
    let host = Host::new();
    for name in ways_out(&host.secret).iter().filter(|name| !name.contains('"')) {
        let image = host.write("a.vmdk", descriptor(&format!("RW 4 FLAT \"{name}\" 0")));
        host.refuses(&image, "refused to open");
    }
}

/// The same through the parent of a vmdk, a vhd or a vhdx. An absolute name is that of another machine: what it ends with
/// is looked for beside the image, and nothing else.
#[test]
fn a_parent_of_the_host() {
    let host = Host::new();
    let utf16 = |name: &str| name.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    for name in ways_out(&host.secret).iter().filter(|name| !name.contains('"')) {
        host.refuses(&host.write("a.vmdk", descriptor_over(name)), "refused to open");
    }
    let secret = text(&host.secret);
    let absolute = [
        (b"MacX", format!("file://{secret}").into_bytes()),
        (b"MacX", format!("file://localhost{}", secret.replace("/secret", "%2Fsecret")).into_bytes()),
        (b"W2ku", utf16(secret)),
        (b"W2ku", utf16("\\\\server\\share\\secret")),
        (b"Wi2k", b"C:\\secret".to_vec()),
    ];
    for (code, name) in absolute {
        host.refuses(&host.write("a.vhd", vhd_over(code, &name)), "images/secret: cannot be opened");
    }
    let relative = [
        (b"W2ru", utf16("..\\secret")),
        (b"Wi2r", b".\\..\\secret".to_vec()),
        (b"MacX", b"file://./%2e%2e/secret".to_vec()),
    ];
    for (code, name) in relative {
        host.refuses(&host.write("a.vhd", vhd_over(code, &name)), "refused to open");
    }
    if has("a_parent_of_the_host", &["xz"]) {
        let packed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/differencing.vhdx.xz");
        let mut image = run("xz", &["-dc", packed]).stdout;
        let (name, hostile) = (utf16("base.vhdx"), utf16("..\\s.vhdx"));
        let at = image.windows(name.len()).position(|part| part == name).unwrap();
        image[at..at + name.len()].copy_from_slice(&hostile);
        host.refuses(&host.write("a.vhdx", image), "refused to open");
    }
}

/// A link in the image's directory leads out of it.
#[test]
fn a_link_out_of_the_directory() {
    let host = Host::new();
    symlink("../secret", host.images.join("relative")).unwrap();
    symlink(&host.secret, host.images.join("absolute")).unwrap();
    symlink("/dev/zero", host.images.join("device")).unwrap();
    for name in ["relative", "absolute", "device"] {
        host.refuses(&host.write("a.qcow2", qcow2(name, false)), name);
        host.refuses(&host.write("b.qcow2", qcow2(name, true)), name);
        host.refuses(&host.write("c.vmdk", descriptor(&format!("RW 4 FLAT \"{name}\" 0"))), name);
    }
}

/// A pipe as an extent hangs readers that open it as a file.
#[test]
fn a_pipe_or_a_directory() {
    let host = Host::new();
    run("mkfifo", &[text(&host.images.join("pipe"))]);
    fs::create_dir(host.images.join("folder")).unwrap();
    for name in ["pipe", "folder"] {
        host.refuses(&host.write("a.qcow2", qcow2(name, false)), name);
        host.refuses(&host.write("c.vmdk", descriptor(&format!("RW 4 FLAT \"{name}\" 0"))), name);
        host.refuses(&host.images.join(name), name);
    }
    // CVE-2026-44919: a device without an end is read for ever.
    host.refuses(Path::new("/dev/zero"), "/dev/zero");
}

/// CVE-2008-2004, CVE-2013-1922, CVE-2024-40767, CVE-2026-24708: a guest writes an image's header into its raw disk, which is then taken for one.
#[test]
fn a_raw_disk_that_its_guest_made_look_like_an_image() {
    if !has("a_raw_disk_that_its_guest_made_look_like_an_image", &["qemu-img"]) {
        return;
    }
    let host = Host::new();
    let disk = qcow2(text(&host.secret), false);
    let base = host.write("base.raw", &disk);
    let overlay = host.images.join("overlay.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", text(&overlay)]);
    for arguments in [vec![text(&overlay)], vec!["--format", "raw", text(&base)]] {
        let output = thinorigin(&[&["cat", "--no-cache"], &arguments[..]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == disk, "{arguments:?}: the guest's bytes, and nothing else");
    }
    // Without being told, the reader sees what could be an image, and that image names the secret.
    host.refuses(&base, "refused to open");
}

/// Images that lead back to themselves, which hung readers.
#[test]
fn a_loop() {
    let host = Host::new();
    host.refuses(&host.write("a.qcow2", qcow2("a.qcow2", false)), "comes back");
    host.refuses(&host.write("d.qcow2", qcow2("d.qcow2", true)), "names itself");
    host.write("b.qcow2", qcow2("c.qcow2", false));
    host.refuses(&host.write("c.qcow2", qcow2("b.qcow2", false)), "comes back");
    host.refuses(&host.write("v.vhd", vhd_over(b"MacX", b"file://./v.vhd")), "is not the parent");
    host.refuses(&host.write("e.vmdk", descriptor("RW 1 FLAT \"e.vmdk\" 0")), "names itself");
    fs::hard_link(host.images.join("e.vmdk"), host.images.join("f.vmdk")).unwrap();
    host.write("e.vmdk", descriptor("RW 1 FLAT \"f.vmdk\" 0"));
    host.refuses(&host.images.join("e.vmdk"), "names itself");
}

/// Members of an archive are data: what an image inside names is looked for beside the archive, never in the host.
#[test]
fn an_image_in_an_archive_reaches_no_further() {
    if !has("an_image_in_an_archive_reaches_no_further", &["tar"]) {
        return;
    }
    let host = Host::new();
    host.write("a.vmdk", descriptor(&format!("RW 4 FLAT \"{}\" 0", text(&host.secret))));
    run("tar", &["-C", text(&host.images), "-cf", text(&host.dir.join("images/a.ova")), "a.vmdk"]);
    host.refuses(&host.images.join("a.ova"), "refused to open");
}

/// Archives and compressed files whose inside names the file itself.
#[test]
fn a_loop_through_a_container() {
    if !has("a_loop_through_a_container", &["tar", "gzip"]) {
        return;
    }
    let host = Host::new();
    host.write("disk.vmdk", descriptor("RW 4 FLAT \"a.ova\" 0"));
    run("tar", &["-C", text(&host.images), "-cf", text(&host.images.join("a.ova")), "disk.vmdk"]);
    host.refuses(&host.images.join("a.ova"), "names itself");
    host.write("b.qcow2", qcow2("b.qcow2.gz", false));
    run("gzip", &[text(&host.images.join("b.qcow2"))]);
    host.refuses(&host.images.join("b.qcow2.gz"), "comes back");
}
