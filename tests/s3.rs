//! S3 on a real server that checks signatures: where buckets and credentials are found, versions, and listing.

mod common;

use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, put};
use backends::testing::{Lie, Origin};
use common::lab::{Lab, check, has_s3, image, is_root, outcome, write_credentials};
use common::nbd::Nbd;
use common::{Dir, Server, THINORIGIN, assert_same_bytes, has, run, text};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

/// A server, and an object of `length` bytes that is not on it yet; `None` where there is no such server.
fn server_and_object(test: &str, length: usize) -> Option<(Dir, Lab, PathBuf)> {
    if !has_s3(test) {
        return None;
    }
    let dir = Dir::new();
    let object = dir.join("object");
    fs::write(&object, vec![7; length]).unwrap();
    let s3 = Lab::start("s3", &dir, &[]);
    Some((dir, s3, object))
}

#[test]
fn a_bucket_is_listed() {
    let Some((_dir, s3, object)) = server_and_object("a_bucket_is_listed", 1234) else { return };
    for key in ["templates/a%20%C3%BC.img", "templates/more/b.img", "other.img"] {
        s3.run("put", &[text(&object), key]);
    }
    let (url, credentials) = (s3.value("S3_URL"), s3.value("S3_CREDENTIALS"));
    let list = |location: &str| {
        let output = run(THINORIGIN, &["list", "--json", "--credentials", &credentials, location]);
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        let row =
            |row: &serde_json::Value| (row["location"].as_str().unwrap().to_owned(), row["size"].as_u64());
        rows.iter().map(row).collect::<Vec<_>>()
    };
    let named = format!("{url}/templates/a%20%C3%BC.img");
    assert_eq!(
        list(&format!("{url}/templates/")),
        [(named.clone(), Some(1234)), (format!("{url}/templates/more/"), None)]
    );
    assert_eq!(list(&format!("{url}/")).len(), 2);
    assert_eq!(list(&format!("{url}/templates/zzz")), []);
    // What it prints can be opened as it stands.
    run(THINORIGIN, &["info", "--no-cache", "--format", "raw", "--credentials", &credentials, &named]);
    let (code, said) = outcome(&["list", "http://127.0.0.1:1/a/"]);
    assert!(code == Some(1) && said.contains("S3 bucket"), "{said}");
}

#[test]
fn a_server_that_checks_signatures_refuses_a_wrong_key() {
    let test = "a_server_that_checks_signatures_refuses_a_wrong_key";
    if !has(test, &["qemu-img"]) || !has_s3(test) {
        return;
    }
    let dir = Dir::new();
    let (image, _) = image(&dir);
    let s3 = Lab::start("s3", &dir, &[]);
    s3.run("put", &[text(&image), "disk.qcow2"]);
    let right = fs::read_to_string(s3.value("S3_CREDENTIALS")).unwrap();
    let secret = "another-secret-than-that-of-the-key";
    let wrong = right.replace(&s3.value("S3_SECRET_KEY"), secret);
    assert_ne!(right, wrong);

    let location = format!("{}/disk.qcow2", s3.value("S3_URL"));
    for (name, sections, served) in [("right.toml", right, true), ("wrong.toml", wrong, false)] {
        let credentials = dir.join(name);
        write_credentials(&credentials, &sections);
        let output = Command::new(THINORIGIN)
            .args(["info", "-vv", "--no-cache", "--credentials", text(&credentials), &location])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), served, "{name}: {said}");
        assert!(!said.contains(secret) && !said.contains(&s3.value("S3_SECRET_KEY")), "{name}: {said}");
    }
}

#[test]
fn credentials_of_the_environment_and_of_a_profile_open_a_bucket() {
    let test = "credentials_of_the_environment_and_of_a_profile_open_a_bucket";
    if !has(test, &["qemu-img"]) || !has_s3(test) {
        return;
    }
    let dir = Dir::new();
    let (image, _) = image(&dir);
    let s3 = Lab::start("s3", &dir, &[]);
    s3.run("put", &[text(&image), "disk.qcow2"]);
    let (key, secret) = (s3.value("S3_ACCESS_KEY"), s3.value("S3_SECRET_KEY"));
    let profiles = dir.join("profiles");
    write_credentials(
        &profiles,
        &format!("[lab]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"),
    );
    // A file of this machine's user is not looked at, and no server is told where another is.
    let nothing = text(&dir.join("nothing")).to_owned();
    let environment = vec![("AWS_ACCESS_KEY_ID", key.as_str()), ("AWS_SECRET_ACCESS_KEY", secret.as_str())];
    let profile = vec![("AWS_SHARED_CREDENTIALS_FILE", text(&profiles)), ("AWS_PROFILE", "lab")];
    let wrong = vec![("AWS_ACCESS_KEY_ID", key.as_str()), ("AWS_SECRET_ACCESS_KEY", "another")];
    for (variables, opens) in [(environment, true), (profile, true), (wrong, false), (Vec::new(), false)] {
        let output = Command::new(THINORIGIN)
            .args(["info", "--no-cache", &format!("{}/disk.qcow2", s3.value("S3_URL"))])
            .env("AWS_SHARED_CREDENTIALS_FILE", &nothing)
            .env("AWS_CONFIG_FILE", &nothing)
            .env("AWS_ENDPOINT_URL_S3", s3.value("S3_ENDPOINT"))
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), opens, "{variables:?}: {said}");
        assert!(!said.contains(&secret), "{said}");
    }
}

#[test]
fn a_bucket_that_is_a_virtual_host_is_read() {
    let test = "a_bucket_that_is_a_virtual_host_is_read";
    if !has(test, &["qemu-img", "unshare"]) || !is_root(test) || !has_s3(test) {
        return;
    }
    let dir = Dir::new();
    let (image, wanted) = image(&dir);
    let s3 = Lab::start("s3", &dir, &[]);
    s3.run("put", &[text(&image), "disk.qcow2"]);
    let (endpoint, domain) = (s3.value("S3_ENDPOINT"), s3.value("S3_DOMAIN"));
    // Only the bucket has an address, and only for this one process.
    let hosts = dir.join("hosts");
    fs::write(&hosts, format!("127.0.0.1 images.{domain}\n")).unwrap();
    let credentials = dir.join("credentials.toml");
    let right = fs::read_to_string(s3.value("S3_CREDENTIALS")).unwrap();
    let right = right
        .replace(&endpoint, &endpoint.replace("127.0.0.1", &domain))
        .replace("path_style = true", "path_style = false");
    write_credentials(&credentials, &right);
    let namespace = r#"mount --bind "$1" /etc/hosts && shift && exec "$@""#;
    let read = run(
        "unshare",
        &[
            &["--mount", "sh", "-euc", namespace, "sh", text(&hosts), THINORIGIN, "cat", "--no-cache"][..],
            &["--credentials", text(&credentials), &format!("{}/disk.qcow2", s3.value("S3_URL"))],
        ]
        .concat(),
    );
    assert_same_bytes("as a virtual host", &read.stdout, &wanted);
}

#[test]
fn a_bucket_that_is_open_is_read_by_anybody_and_no_other() {
    let test = "a_bucket_that_is_open_is_read_by_anybody_and_no_other";
    let Some((dir, s3, object)) = server_and_object(test, 70_000) else { return };
    let (open, shut) = (s3.value("S3_OPEN_BUCKET"), s3.value("S3_URL").replace("s3://", ""));
    let credentials = dir.join("credentials.toml");
    let section = |bucket: &str| {
        format!("[\"s3://{bucket}/\"]\nendpoint = {:?}\nanonymous = true\n", s3.value("S3_ENDPOINT"))
    };
    write_credentials(&credentials, &[section(&open), section(&shut)].concat());
    for (bucket, opens) in [(&open, true), (&shut, false)] {
        s3.run("put", &[text(&object), "disk.img", bucket]);
        let location = format!("s3://{bucket}/disk.img");
        let arguments =
            ["cat", "--no-cache", "--format", "raw", "--credentials", text(&credentials), &location];
        let output = Command::new(THINORIGIN).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), opens, "{bucket}: {said}");
        if opens {
            // A disk is whole sectors.
            assert_same_bytes(bucket, &output.stdout[..70_000], &vec![7; 70_000]);
        } else {
            assert!(said.contains("denies access"), "{said}");
        }
    }
}

#[test]
fn a_version_is_read_as_it_was_whatever_comes_after_it() {
    let test = "a_version_is_read_as_it_was_whatever_comes_after_it";
    if !has(test, &["nbdcopy"]) || !has_s3(test) {
        return;
    }
    let dir = Dir::new();
    let s3 = Lab::start("s3", &dir, &[]);
    s3.run("keep-versions", &[]);
    let object = dir.join("object");
    let content = |salt: u8| (0..3_000_000_u32).map(|i| (i >> 9) as u8 ^ salt).collect::<Vec<u8>>();
    let put = |salt: u8| {
        fs::write(&object, content(salt)).unwrap();
        let version = s3.run("put", &[text(&object), "disk.img"]);
        assert!(version.len() > 8, "the server keeps no versions: {version:?}");
        version
    };
    let (first, _) = (put(1), put(2));
    let url = format!("{}/disk.img", s3.value("S3_URL"));
    let (old, new) = (format!("old={url}?versionId={first}"), format!("new={url}"));
    let credentials = s3.value("S3_CREDENTIALS");
    let server =
        Server::start(&dir, &["--no-cache", "--format", "raw", "--credentials", &credentials, &old, &new]);
    check(&dir, &server, "old", &content(1));
    check(&dir, &server, "new", &content(2));
    put(3);
    check(&dir, &server, "old", &content(1));
    let mut current = Nbd::connect_to(&server.socket, "new").unwrap();
    assert_eq!(current.read(1 << 20, 4096).unwrap(), Err(5), "it is another object by now");
    assert_eq!(current.read(0, 4096).unwrap(), Err(5), "for good");
    server.terminate();
    let identity = |location: &str| {
        let arguments = ["info", "--json", "--no-cache", "--format", "raw", "--credentials", &credentials];
        let output = run(THINORIGIN, &[&arguments[..], &[location]].concat());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["identity"].clone()
    };
    assert_ne!(identity(&format!("{url}?versionId={first}")), identity(&url));
    let (code, said) = outcome(&[
        "info",
        "--no-cache",
        "--credentials",
        &credentials,
        &format!("{url}?versionId=0123456789abcdef0123456789abcdef"),
    ]);
    assert_eq!(code, Some(1), "a version that never was: {said}");
}

/// What a machine at AWS finds at 169.254.169.254, or where the environment says. It gives one key after the other, each of
/// them once, and the last one again and again; a key of nothing is a failure of the service.
async fn metadata_service(keys: Vec<Option<serde_json::Value>>) -> (String, Arc<AtomicUsize>) {
    let given = Arc::new(AtomicUsize::new(0));
    let count = given.clone();
    let authorized = |headers: &HeaderMap| {
        headers.get("x-aws-ec2-metadata-token").is_some_and(|token| token == "token of a session")
    };
    let router = axum::Router::new()
        .route(
            "/latest/api/token",
            put(|headers: HeaderMap| async move {
                let lasts = headers.contains_key("x-aws-ec2-metadata-token-ttl-seconds");
                if lasts { Ok("token of a session") } else { Err(StatusCode::BAD_REQUEST) }
            }),
        )
        .route(
            "/latest/meta-data/iam/security-credentials/",
            get(move |headers: HeaderMap| async move {
                if authorized(&headers) { Ok("reader") } else { Err(StatusCode::UNAUTHORIZED) }
            }),
        )
        .route(
            "/latest/meta-data/iam/security-credentials/reader",
            get(move |headers: HeaderMap| async move {
                if !authorized(&headers) {
                    return Err(StatusCode::UNAUTHORIZED);
                }
                let number = count.fetch_add(1, Ordering::SeqCst).min(keys.len() - 1);
                keys[number].clone().map(axum::Json).ok_or(StatusCode::SERVICE_UNAVAILABLE)
            }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (format!("http://{address}"), given)
}

/// A key as the service says it, for so many seconds from now on. Without a token: the S3 server of the lab knows of no
/// sessions.
fn key(access: &str, secret: &str, seconds: u64) -> Option<serde_json::Value> {
    let end = SystemTime::now() + Duration::from_secs(seconds);
    Some(serde_json::json!({
        "Code": "Success", "LastUpdated": "2020-01-01T00:00:00Z", "Type": "AWS-HMAC",
        "AccessKeyId": access, "SecretAccessKey": secret, "Token": "",
        "Expiration": humantime::format_rfc3339_seconds(end).to_string(),
    }))
}

#[test]
fn the_machine_s_own_role_is_asked_for_where_a_section_says_so_and_again_before_a_key_ends() {
    let test = "the_machine_s_own_role_is_asked_for_where_a_section_says_so_and_again_before_a_key_ends";
    if !has(test, &["qemu-img", "nbdcopy"]) || !has_s3(test) {
        return;
    }
    let dir = Dir::new();
    let (image, wanted) = image(&dir);
    let s3 = Lab::start("s3", &dir, &[]);
    s3.run("put", &[text(&image), "disk.qcow2"]);
    let location = format!("{}/disk.qcow2", s3.value("S3_URL"));
    // A key is no good any more two minutes before its end. The service fails once when it is asked for the next.
    let keys = vec![
        key(&s3.value("S3_OTHER_ACCESS_KEY"), &s3.value("S3_OTHER_SECRET_KEY"), 125),
        None,
        key(&s3.value("S3_ACCESS_KEY"), &s3.value("S3_SECRET_KEY"), 3600),
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (service, given) = runtime.block_on(metadata_service(keys));
    let given = || given.load(Ordering::SeqCst);
    let nothing = text(&dir.join("nothing")).to_owned();
    let environment = [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.as_str()),
        ("AWS_SHARED_CREDENTIALS_FILE", &nothing),
        ("AWS_CONFIG_FILE", &nothing),
    ];
    let credentials = dir.join("credentials.toml");
    let section = |more: &str| {
        let _ = fs::remove_file(&credentials);
        let place = format!("endpoint = {:?}\nregion = \"us-east-1\"\n{more}", s3.value("S3_ENDPOINT"));
        write_credentials(&credentials, &format!("[\"{}/\"]\n{place}", s3.value("S3_URL")));
    };
    section("");
    let info = Command::new(THINORIGIN)
        .args(["info", "--no-cache", "--credentials", text(&credentials), &location])
        .envs(environment)
        .output()
        .unwrap();
    assert_eq!((info.status.code(), given()), (Some(1), 0), "nobody said that the machine may be asked");

    section("instance_metadata = true\n");
    let server =
        Server::start_in(&dir, &environment, &["--no-cache", "--credentials", text(&credentials), &location]);
    check(&dir, &server, "", &wanted);
    assert_eq!(given(), 1, "one key opens and reads");
    std::thread::sleep(Duration::from_secs(7));
    check(&dir, &server, "", &wanted);
    assert_eq!(given(), 3, "a failure, and the next key");
    check(&dir, &server, "", &wanted);
    assert_eq!(given(), 3);
    server.terminate();
}

#[test]
fn a_key_that_is_refused_is_looked_for_again_where_it_came_from() {
    let dir = Dir::new();
    let content = vec![7; 1 << 20];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let origin = runtime.block_on(Origin::start(content)).unwrap();
    let profiles = dir.join("profiles");
    let profile = |key: &str| {
        let _ = fs::remove_file(&profiles);
        let text = format!("[lab]\naws_access_key_id = {key}\naws_secret_access_key = secret\n");
        write_credentials(&profiles, &text);
    };
    profile("FIRST");
    let credentials = dir.join("credentials.toml");
    let section =
        format!("[\"s3://bucket/\"]\nendpoint = \"http://{}\"\nprofile = \"lab\"\n", origin.address());
    write_credentials(&credentials, &section);
    let environment = [("AWS_SHARED_CREDENTIALS_FILE", text(&profiles))];
    let arguments =
        ["--no-cache", "--format", "raw", "--credentials", text(&credentials), "s3://bucket/disk"];
    let server = Server::start_in(&dir, &environment, &arguments);
    let mut client = Nbd::connect(&server.socket).unwrap();
    let mut read = |at: u64| {
        client.read(at, 4096).unwrap().unwrap();
        let heads = origin.heads();
        heads.iter().map(|head| head.contains("credential=second/")).collect::<Vec<_>>()
    };
    profile("SECOND");
    assert!(!read(400_000).contains(&true), "a key that is accepted is kept");
    // 400 is how AWS says that a token has expired, 403 how it refuses a key.
    origin.lie([Lie::Status(400, String::new())]);
    assert!(read(500_000).ends_with(&[false, true]));
    origin.lie([Lie::Status(403, String::new())]);
    assert!(read(600_000).ends_with(&[true, true, true]));
    // One that is refused again is an error, and not asked for for ever.
    origin.always(Lie::Status(403, String::new()));
    let before = origin.heads().len();
    assert_eq!(client.read(700_000, 4096).unwrap(), Err(5));
    assert_eq!(origin.heads().len() - before, 2);
}
