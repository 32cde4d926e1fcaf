use super::*;
use std::os::unix::fs::PermissionsExt;

const TEXT: &str = r#"
["https://h/images/"]
username = "u"
password = "s3cret"
["https://h/images/deep"]
token = "s3cret"
headers = { X-Key = "s3cret" }
["s3://bucket/"]
endpoint = "http://127.0.0.1:1"
access_key = "k"
secret_key = "s3cret"
"#;

fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("credentials.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    (dir, path)
}

#[test]
fn the_longest_prefix_speaks() {
    let (_dir, path) = file(TEXT, 0o600);
    let credentials = Credentials::load(Some(&path)).unwrap();
    let section = |location: &str| credentials.section(&location.parse().unwrap());
    assert_eq!(section("https://h/images/a.img").username.as_deref(), Some("u"));
    assert_eq!(section("https://someone@h/images/a.img").username.as_deref(), Some("u"));
    assert!(section("https://h/images/deep/a.img").token.is_some());
    assert!(section("https://h/images/deeper/a.img").token.is_none());
    for other in
        ["https://h/a.img", "http://h/images/a.img", "https://h:8443/images/a.img", "https://h2/images/x"]
    {
        assert_eq!(section(other), Section::default(), "{other}");
    }
    assert_eq!(section("s3://bucket/a").access_key.as_deref(), Some("k"));
    assert_eq!(section("s3://bucket2/a"), Section::default());
}

#[test]
fn secrets_are_not_shown() {
    let (_dir, path) = file(TEXT, 0o600);
    let credentials = Credentials::load(Some(&path)).unwrap();
    let shown =
        format!("{credentials:?} {:?}", credentials.section(&"https://h/images/deep/a".parse().unwrap()));
    assert!(shown.contains("***") && !shown.contains("s3cret"), "{shown}");
}

#[test]
fn a_file_that_is_wrong_is_refused_without_showing_it() {
    for (text, mode, kind, what) in [
        (TEXT, 0o644, Kind::Denied, "mode 0644"),
        (TEXT, 0o640, Kind::Denied, "mode 0640"),
        ("[\"https://h/\"]\npassword = [\"s3cret\"]", 0o600, Kind::Location, "line 2"),
        ("[\"https://h/\"]\npassword = s3cret", 0o600, Kind::Location, "line 2"),
        ("[\"https://h/\"]\npasword = \"s3cret\"", 0o600, Kind::Location, "pasword"),
        ("[\"https://u:s3cret@h/\"]\n", 0o600, Kind::Location, "password"),
    ] {
        let (_dir, path) = file(text, mode);
        let error = Credentials::load(Some(&path)).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(what) && !error.message.contains("s3cret"), "{error}");
    }
    assert_eq!(Credentials::load(Some(Path::new("/nonexistent"))).unwrap_err().kind, Kind::NotFound);
}
