//! Specimens of what qemu-img does not write, made by `tests/data/make` from the specifications: the program shows the
//! guest bytes that the maker computed.

mod common;

use common::{Dir, THINORIGIN, has, run, text};
use std::fs;
use std::path::Path;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

/// A directory with the specimens, those that are stored as xz unpacked: an image in a container finds no parent by
/// the parent's own name.
fn unpacked() -> Dir {
    let dir = Dir::new();
    for file in fs::read_dir(DATA).unwrap() {
        let file = file.unwrap();
        let copy = dir.path().join(file.file_name());
        fs::copy(file.path(), &copy).unwrap();
        if copy.extension().is_some_and(|end| end == "xz") {
            run("xz", &["-d", text(&copy)]);
        }
    }
    dir
}

fn digest(dir: &Dir, image: &Path) -> (u64, String) {
    let guest = dir.join("guest");
    let output = run(THINORIGIN, &["cat", "--no-cache", text(image)]);
    fs::write(&guest, output.stdout).unwrap();
    let said = run("sha256sum", &[text(&guest)]);
    let digest = String::from_utf8_lossy(&said.stdout).split(' ').next().unwrap().to_owned();
    (fs::metadata(&guest).unwrap().len(), digest)
}

#[test]
fn every_specimen_reads_as_its_maker_says() {
    if !has("every_specimen_reads_as_its_maker_says", &["xz", "sha256sum"]) {
        return;
    }
    let dir = unpacked();
    let digests = fs::read_to_string(dir.join("DIGESTS")).unwrap();
    assert!(digests.lines().count() >= 12);
    for line in digests.lines() {
        let [name, length, wanted] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let image = dir.join(name.strip_suffix(".xz").unwrap_or(name));
        assert_eq!(digest(&dir, &image), (length.parse().unwrap(), wanted.to_owned()), "{name}");
        run(THINORIGIN, &["check", "--no-cache", text(&image)]);
        run(THINORIGIN, &["map", "--no-cache", text(&image)]);
        // Without a parent, the packed file is as good.
        if name.ends_with(".xz") && !name.starts_with("differencing") {
            let packed = Path::new(DATA).join(name);
            assert_eq!(digest(&dir, &packed).1, wanted, "{name}, packed");
        }
    }
}

#[test]
fn the_specimens_are_what_their_maker_writes() {
    if !has("the_specimens_are_what_their_maker_writes", &["python3", "xz"]) {
        return;
    }
    let made = Dir::new();
    run("python3", &[&format!("{DATA}/make"), text(made.path())]);
    for file in fs::read_dir(made.path()).unwrap() {
        let name = file.unwrap().file_name();
        let (kept, new) = (Path::new(DATA).join(&name), made.path().join(&name));
        if name.to_string_lossy().ends_with(".xz") {
            // Another liblzma may compress in another way.
            let clear = |path: &Path| run("xz", &["-dc", text(path)]).stdout;
            assert!(clear(&kept) == clear(&new), "{name:?}");
        } else {
            assert!(fs::read(kept).unwrap() == fs::read(new).unwrap(), "{name:?}");
        }
    }
}
