use super::*;

fn at(text: &str) -> Location {
    text.parse().unwrap()
}

#[test]
fn every_kind_is_parsed_and_shown_canonically() {
    for (text, scheme, shown) in [
        ("/a/b.img", Scheme::File, "/a/b.img"),
        ("b.img", Scheme::File, "b.img"),
        ("name:with:colons.img", Scheme::File, "name:with:colons.img"),
        ("file:///a/b%20c.img", Scheme::File, "/a/b c.img"),
        ("file:/a/b", Scheme::File, "/a/b"),
        ("file://localhost/a", Scheme::File, "/a"),
        ("HTTP://Host:80/a b.img", Scheme::Http, "http://host/a%20b.img"),
        ("https://host/x.qcow2?X-Amz-Signature=s3cret", Scheme::Https, "https://host/x.qcow2?…"),
        ("https://user@host/x", Scheme::Https, "https://user@host/x"),
        ("s3://Bucket_1/key/x.vhd?versionId=abc", Scheme::S3, "s3://Bucket_1/key/x.vhd?versionId=abc"),
        ("nfs://server:2049/export/a.img", Scheme::Nfs, "nfs://server:2049/export/a.img"),
        ("smb://me@server/share/ü.img", Scheme::Smb, "smb://me@server/share/%C3%BC.img"),
    ] {
        let location = at(text);
        assert_eq!(location.scheme(), scheme, "{text}");
        assert_eq!(location.to_string(), shown, "{text}");
        assert_eq!(at(shown).to_string(), shown, "shown form is stable");
    }
}

#[test]
fn what_is_not_a_location_is_refused_without_repeating_a_password() {
    for text in [
        "",
        "a\0b",
        "ftp://host/x",
        "http:///x",
        "http://user:s3cret@host/x",
        "smb://u:s3cret@h/share/x",
        "http://host/x#y",
        "nfs://server/x?y=s3cret",
        "s3://bucket/key?X-Amz-Signature=s3cret",
        "file://other/x",
        "file:///x?y",
    ] {
        let error = text.parse::<Location>().unwrap_err();
        assert_eq!(error.kind, Kind::Location, "{text}");
        assert!(!error.message.contains("s3cret"), "{}", error.message);
    }
    assert!("x".repeat(5000).parse::<Location>().is_err());
}

#[test]
fn a_secret_is_in_no_way_of_showing() {
    let location = at("http://h/x?token=s3cret");
    assert!(!format!("{location} {location:?}").contains("s3cret"));
    assert_eq!(location.secret_form(), "http://h/x?token=s3cret", "but requests have it");
    assert_eq!(at(&location.secret_form()), location);
}

#[test]
fn names_are_decoded() {
    assert_eq!(at("http://h/d/a%20b%C3%BC.img?x").file_name(), "a bü.img");
    assert_eq!(at("/d/x.img").file_name(), "x.img");
    assert_eq!(at("http://h/d/x.img?q").directory().to_string(), "http://h/d/");
    assert_eq!(at("x.img").directory().to_string(), ".");
}

#[test]
fn siblings_stay_inside() {
    for (base, name, expect) in [
        ("/d/top.qcow2", "base.img", Some("/d/base.img")),
        ("top.qcow2", "base.img", Some("./base.img")),
        ("/d/top.qcow2", "./sub/base.img", Some("/d/sub/base.img")),
        ("http://h/d/top?sig", "base.img", Some("http://h/d/base.img")),
        ("http://h/top", "a b#?%2e.img", Some("http://h/a%20b%23%3F%252e.img")),
        ("s3://b/k/top?versionId=1", "x", Some("s3://b/k/x")),
        ("nfs://h/e/top", "sub/x", Some("nfs://h/e/sub/x")),
    ] {
        assert_eq!(at(base).sibling(name).map(|l| l.to_string()).as_deref(), expect, "{base} {name}");
    }
    for base in ["/d/top", "http://h/d/top", "s3://b/k/top", "nfs://h/e/top", "smb://h/s/top"] {
        for name in [
            "",
            ".",
            "./.",
            "..",
            "../x",
            "a/../x",
            "a/..",
            "/etc/passwd",
            "//h/x",
            "a//b",
            "a/",
            "http://h/x",
            "json:{}",
            "nbd:x",
            "C:x",
            "a\\b",
            "..\\x",
            "a\0",
            "a\nb",
        ] {
            assert_eq!(at(base).sibling(name), None, "{base} {name:?}");
        }
        assert_eq!(at(base).sibling(&"x".repeat(5000)), None);
    }
    // Encoded dots in a name are the name's own characters, not a way up.
    assert_eq!(at("http://h/d/top").sibling("%2e%2e").unwrap().to_string(), "http://h/d/%252e%252e");
}

#[test]
fn prefixes_are_whole_components_on_the_same_server() {
    for (location, prefix, expect) in [
        ("/images/a", "/images", true),
        ("/images/a", "/images/", true),
        ("/images2/a", "/images", false),
        ("/images/../etc", "/images", false),
        ("http://h/i/a?q", "http://h/i", true),
        ("http://h:80/i/a", "http://h/i/", true),
        ("http://h/i", "http://h/i", true),
        ("http://h/ia", "http://h/i", false),
        ("http://h/i/../x", "http://h/i", false),
        ("http://h/i/%2e%2e/x", "http://h/i", false),
        ("http://h/i/..%2fx", "http://h/i", false),
        ("https://h/i/a", "http://h/i", false),
        ("http://h2/i/a", "http://h/i", false),
        ("http://h:8080/i/a", "http://h/i", false),
        ("s3://b/k/a", "s3://b/", true),
        ("/i/a", "http://h/i", false),
    ] {
        assert_eq!(at(location).is_under(prefix), expect, "{location} {prefix}");
    }
}

#[test]
fn relative_paths_become_absolute() {
    let here = std::env::current_dir().unwrap();
    assert_eq!(at("a/b").absolute().unwrap().as_path(), Some(here.join("a/b").as_path()));
    let sibling = at("a/b").sibling("c").unwrap().absolute().unwrap();
    assert_eq!(sibling.beneath(), Some((here.join("a").as_path(), Path::new("c"))));
    assert_eq!(at("http://h/x").absolute().unwrap(), at("http://h/x"));
}
