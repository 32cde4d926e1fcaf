//! Rules about the tree itself, so that they hold by more than good intentions.

use std::fs;
use std::path::{Path, PathBuf};

const MEMBERS: [&str; 4] = ["formats", "backends", "nbd", "sr"];
/// Longest file, in lines that are neither blank nor comments.
const LONGEST: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs: Vec<_> =
        MEMBERS.iter().chain(&["src", "tests", "fuzz"]).map(|dir| root().join(dir)).collect();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() && entry.file_name() != Some("target".as_ref()) {
                dirs.push(entry);
            } else if entry.extension() == Some("rs".as_ref()) {
                found.push(entry);
            }
        }
    }
    assert!(found.len() > 50, "the walk over the sources found only {} files", found.len());
    found
}

#[test]
fn no_member_depends_on_another() {
    for member in MEMBERS {
        let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        for other in MEMBERS.iter().filter(|other| **other != member) {
            let names =
                [format!("thinorigin-{other}"), format!("\n{other}.workspace"), format!("\n{other} =")];
            for name in names {
                assert!(!manifest.contains(&name), "{member}/Cargo.toml names {other}");
            }
        }
    }
}

#[test]
fn no_file_is_longer_than_one_idea() {
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
        let lines = text.lines().filter(code).count();
        assert!(lines <= LONGEST, "{}: {lines} lines of code", path.display());
    }
}

#[test]
fn parsers_and_codecs_contain_no_unsafe() {
    let formats = fs::read_to_string(root().join("formats/src/lib.rs")).unwrap();
    assert!(formats.contains("#![forbid(unsafe_code)]"));
    let pure = ["nbd/src/wire", "nbd/src/handshake", "nbd/src/session", "nbd/src/validate"];
    for path in sources() {
        let relative = path.strip_prefix(root()).unwrap();
        if pure.iter().any(|dir| relative.starts_with(dir)) {
            assert!(!fs::read_to_string(&path).unwrap().contains("unsafe"), "{}", relative.display());
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = vec![root().join("README.md")];
    documents.extend(fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    for document in documents.iter().filter(|path| path.extension() == Some("md".as_ref())) {
        let text = fs::read_to_string(document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            if !path.is_empty() && !path.contains("://") {
                let target = document.parent().unwrap().join(path);
                assert!(target.exists(), "{}: the link to {path} leads nowhere", document.display());
            }
        }
    }
}
