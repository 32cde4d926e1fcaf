//! Where images find the files that they name: beside themselves, wherever the program was started.

mod common;

use common::naming::{descriptor, qcow2};
use common::{Dir, THINORIGIN, has, text};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs a program in a directory; it must succeed.
fn run_in(directory: &Path, program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).current_dir(directory).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn names_are_relative_to_the_image_that_has_them() {
    if !has("names_are_relative_to_the_image_that_has_them", &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = Dir::new();
    let (images, elsewhere) = (dir.join("images"), dir.join("elsewhere"));
    // In both places there are files of these names, with other bytes.
    for (root, byte) in [(&images, 1), (&elsewhere, 2)] {
        let sub = root.join("sub");
        fs::create_dir_all(sub.join("deep")).unwrap();
        fs::write(sub.join("deep/base.raw"), vec![byte; 1 << 20]).unwrap();
        let create = ["create", "-q", "-f", "qcow2"];
        let over = |backing, format, name| [&create[..], &["-b", backing, "-F", format, name]].concat();
        run_in(&sub, "qemu-img", &over("deep/base.raw", "raw", "middle.qcow2"));
        run_in(root, "qemu-img", &over("sub/middle.qcow2", "qcow2", "top.qcow2"));
        let data = ["-o", "data_file=data.raw,data_file_raw=on", "external.qcow2", "1M"];
        run_in(root, "qemu-img", &[&create[..], &data].concat());
        run_in(root, "qemu-io", &["-f", "qcow2", "-c", &format!("write -P {byte} 0 1M"), "external.qcow2"]);
    }
    let cat = |here: &Path, image: &str| run_in(here, THINORIGIN, &["cat", "--no-cache", image]);
    let absolute = images.join("top.qcow2");
    for (here, image) in
        [(&elsewhere, text(&absolute)), (&elsewhere, "../images/top.qcow2"), (&images, "top.qcow2")]
    {
        assert!(cat(here, image) == vec![1; 1 << 20], "{image} from {}", here.display());
    }
    assert!(
        cat(&elsewhere, text(&images.join("external.qcow2"))) == vec![1; 1 << 20],
        "an external data file"
    );
    fs::remove_file(images.join("data.raw")).unwrap();
    let output = Command::new(THINORIGIN)
        .args(["info", "--no-cache", "../images/external.qcow2"])
        .current_dir(&elsewhere)
        .output();
    let said = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(said.contains("images/data.raw: cannot be opened"), "{said}");
}

#[test]
fn odd_names_are_names() {
    let dir = Dir::new();
    for name in ["a b", "it's \"quoted\" 100%", "\u{2603}%2e%2e#?&", "json", "-n", "\u{202e}evil"] {
        fs::write(dir.join(name), vec![3; 1 << 20]).unwrap();
        let top = dir.join(&format!("{name} top.qcow2"));
        fs::write(&top, qcow2(name, false)).unwrap();
        let bytes = run_in(dir.path(), THINORIGIN, &["cat", "--no-cache", text(&top)]);
        assert!(bytes == vec![3; 1 << 20], "{name}");
    }
    // A colon makes a scheme of what is in front of it, unless something says that it is a name.
    fs::write(dir.join("a:b.raw"), vec![4; 1 << 20]).unwrap();
    let top = dir.join("json:{\"driver\":\"nbd\"}.qcow2");
    for (name, found) in [("./a:b.raw", true), ("file:a:b.raw", true), ("a:b.raw", false)] {
        fs::write(&top, qcow2(name, false)).unwrap();
        let output = Command::new(THINORIGIN).args(["cat", "--no-cache", text(&top)]).output().unwrap();
        assert_eq!(output.status.success(), found, "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!found || output.stdout == vec![4; 1 << 20], "{name}");
    }
}

#[test]
fn what_a_json_name_says_is_found_as_any_other() {
    let dir = Dir::new();
    let (base, raw) = (qcow2("base.raw", false), vec![5; 1 << 20]);
    fs::write(dir.join("base.raw"), &raw).unwrap();
    fs::write(dir.join("base.qcow2"), &base).unwrap();
    let top = dir.join("top.qcow2");
    let cat = |name: &str| {
        fs::write(&top, qcow2(name, false)).unwrap();
        Command::new(THINORIGIN).args(["cat", "--no-cache", text(&top)]).output().unwrap()
    };
    for name in [
        r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}"#,
        r#"json:{"driver":"qcow2","file.driver":"file","file.filename":"base.qcow2"}"#,
        r#"json:{"driver":"file","filename":"base.qcow2"}"#,
    ] {
        let output = cat(name);
        assert!(output.stdout == raw, "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // Said to be raw, it is what it is, and what its guest made it look like means nothing.
    let output = cat(r#"json:{"driver":"raw","file":{"driver":"file","filename":"base.qcow2"}}"#);
    assert!(output.stdout.starts_with(&base), "{}", String::from_utf8_lossy(&output.stderr));
    for name in [
        r#"json:{"driver":"raw","offset":"512","file":{"driver":"file","filename":"base.raw"}}"#,
        r#"json:{"driver":"raw","file":{"driver":"file","filename":"../base.raw"}}"#,
        r#"json:{"driver":"http","url":"http://127.0.0.1:1/base.raw"}"#,
    ] {
        let output = cat(name);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("refused to open"), "{name}: {said}");
    }
}

#[test]
fn an_image_of_many_files_opens_where_few_may_be_open() {
    let dir = Dir::new();
    let mut lines = String::new();
    for number in 0..200_u8 {
        fs::write(dir.join(&format!("e{number}")), [number; 512]).unwrap();
        lines += &format!("RW 1 FLAT \"e{number}\" 0\n");
    }
    let image = dir.join("image.vmdk");
    fs::write(&image, descriptor(&lines)).unwrap();
    let limited = "ulimit -S -n 64; exec \"$0\" \"$@\"";
    let bytes = run_in(dir.path(), "sh", &["-c", limited, THINORIGIN, "cat", "--no-cache", text(&image)]);
    assert!(bytes.chunks(512).map(|sector| sector[0]).eq(0..200));
}
