//! One image on a real server of each kind, read through the whole program: the same bytes from everywhere, and an
//! error that names what is wrong where there can be none.

mod common;

use backends::Source;
use common::lab::{Lab, SPELLED, check, has_nfs, has_s3, image, is_root, outcome, write_credentials};
use common::nbd::Nbd;
use common::{Dir, Http, Server, THINORIGIN, assert_same_bytes, has, run, text};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

#[test]
fn every_kind_of_server_serves_the_same_disk() {
    let test = "every_kind_of_server_serves_the_same_disk";
    if !has(test, &["nginx", "openssl", "smbd", "qemu-img", "nbdcopy"]) || !has_nfs(test) || !has_s3(test) {
        return;
    }
    let dir = Dir::new();
    let (image, wanted) = image(&dir);
    let http = Lab::start("http", &dir, &["--root", text(dir.path()), "--tls"]);
    let nfs = Lab::start("nfs", &dir, &["--root", text(dir.path())]);
    let smb = Lab::start("smb", &dir, &["--root", text(dir.path())]);
    let s3 = Lab::start("s3", &dir, &[]);
    s3.run("put", &[text(&image), SPELLED]);

    let https = http.value("HTTPS_URL");
    let credentials = dir.join("credentials.toml");
    let sections = [
        format!("[\"{https}/\"]\nca = \"{}\"\n", http.value("HTTPS_CA")),
        fs::read_to_string(nfs.value("NFS_CREDENTIALS")).unwrap(),
        fs::read_to_string(smb.value("SMB_CREDENTIALS")).unwrap(),
        fs::read_to_string(s3.value("S3_CREDENTIALS")).unwrap(),
    ];
    write_credentials(&credentials, &sections.concat());
    let locations = [
        ("file", text(&image).to_owned()),
        ("http", format!("{}/{SPELLED}", http.value("HTTP_URL"))),
        ("https", format!("{https}/{SPELLED}")),
        ("s3", format!("{}/{SPELLED}", s3.value("S3_URL"))),
        ("nfs", format!("{}/{SPELLED}", nfs.value("NFS_URL"))),
        ("smb", format!("{}/{SPELLED}", smb.value("SMB_URL"))),
    ];
    let exports: Vec<String> =
        locations.iter().map(|(kind, location)| format!("{kind}={location}")).collect();
    let cache = dir.join("cache");
    // A round without a cache, one that fills it, and one that is served from it.
    for options in [vec!["--no-cache"], vec!["--cache", text(&cache)], vec!["--cache", text(&cache)]] {
        let mut arguments = options;
        arguments.extend(["--credentials", text(&credentials)]);
        arguments.extend(exports.iter().map(String::as_str));
        let server = Server::start(&dir, &arguments);
        for (kind, _) in &locations {
            check(&dir, &server, kind, &wanted);
            let raw = dir.join("guest.raw");
            run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&raw), &server.uri(kind)]);
        }
        server.terminate();
    }

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let content = bytes::Bytes::from(fs::read(&image).unwrap());
    let options = backends::Options::default()
        .with_credentials(backends::Credentials::load(Some(&credentials)).unwrap());
    for (kind, location) in &locations {
        let outcome = runtime.block_on(async {
            let source = backends::open(&location.parse().unwrap(), &options).await.unwrap();
            backends::testing::conforms(&source, &content).await
        });
        assert_eq!(outcome, Ok(()), "{kind}");
    }

    for (kind, location) in &locations {
        let missing = location.replace(".qcow2", ".missing");
        let output = Command::new(THINORIGIN)
            .args(["info", "--no-cache", "--credentials", text(&credentials), &missing])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{kind}: {missing} was found");
        assert!(said.contains(".missing"), "{kind}: the error names no file: {said}");
        assert!(!said.contains("panicked"), "{kind}: {said}");
    }
}

#[test]
fn a_file_that_may_not_be_read_is_denied_by_every_kind_of_server() {
    let test = "a_file_that_may_not_be_read_is_denied_by_every_kind_of_server";
    if !has(test, &["nginx", "smbd", "qemu-img"]) || !has_nfs(test) {
        return;
    }
    let dir = Dir::new();
    let shut = dir.join("shut.img");
    fs::write(&shut, vec![1; 4096]).unwrap();
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o000)).unwrap();
    let protected = Dir::new();
    fs::write(protected.join("shut.img"), vec![1; 4096]).unwrap();
    let user = ["--user", "reader", "--password", "word"];
    let http = Lab::start("http", &protected, &[&["--root", text(protected.path())][..], &user].concat());
    let nfs = Lab::start("nfs", &dir, &["--root", text(dir.path())]);
    let smb = Lab::start("smb", &dir, &["--root", text(dir.path())]);
    let credentials = dir.join("credentials.toml");
    // To NFS as somebody who is not root, whom a mode does not keep out; Samba knows the right user and another word.
    let sections = [
        format!(
            "[\"{}/\"]\nuid = 65534\ngid = 65534\nmount_port = {}\n",
            nfs.value("NFS_URL"),
            nfs.value("NFS_MOUNT_PORT")
        ),
        format!("[\"{}/\"]\nusername = \"reader\"\npassword = \"wrong\"\n", smb.value("SMB_URL")),
        format!("[\"{}/\"]\nusername = \"reader\"\npassword = \"wrong\"\n", http.value("HTTP_URL")),
    ];
    write_credentials(&credentials, &sections.concat());
    for (kind, url) in
        [("nfs", nfs.value("NFS_URL")), ("smb", smb.value("SMB_URL")), ("http", http.value("HTTP_URL"))]
    {
        let location = format!("{url}/shut.img");
        let began = Instant::now();
        let (code, said) = outcome(&["info", "--no-cache", "--credentials", text(&credentials), &location]);
        assert_eq!(code, Some(1), "{kind}: {said}");
        let told = ["denies", "credentials", "user and password"].iter().any(|word| said.contains(word));
        assert!(told && said.contains("shut.img"), "{kind}: {said}");
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{kind}: trying again does not help: {:?}",
            began.elapsed()
        );
    }
}

#[test]
fn a_local_file_that_may_not_be_read_is_denied() {
    let test = "a_local_file_that_may_not_be_read_is_denied";
    if !has(test, &["setpriv"]) || !is_root(test) {
        return;
    }
    let dir = Dir::new();
    let shut = dir.join("shut.img");
    fs::write(&shut, vec![1; 4096]).unwrap();
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o000)).unwrap();
    // Root without the right to read all files.
    let less = ["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"];
    let output = Command::new("setpriv")
        .args(less)
        .args([THINORIGIN, "info", "--no-cache", text(&shut)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("shut.img") && said.contains("permission denied"), "{said}");
}

#[test]
fn a_server_is_asked_in_the_version_of_http_that_its_section_says() {
    let test = "a_server_is_asked_in_the_version_of_http_that_its_section_says";
    if !has(test, &["nginx", "openssl", "qemu-img"]) {
        return;
    }
    let dir = Dir::new();
    let (image, wanted) = image(&dir);
    let http = Lab::start("http", &dir, &["--root", text(dir.path()), "--tls"]);
    let url = http.value("HTTPS_URL");
    let location = format!("{url}/{SPELLED}");
    let content = bytes::Bytes::from(fs::read(&image).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (line, version) in [("", "HTTP/1.1"), ("http2 = true", "HTTP/2.0")] {
        let credentials = dir.join(&format!("{}.toml", &version[5..]));
        write_credentials(
            &credentials,
            &format!("[\"{url}/\"]\nca = \"{}\"\n{line}\n", http.value("HTTPS_CA")),
        );
        let answers = |version: &str| {
            let log = fs::read_to_string(http.value("HTTP_LOG")).unwrap();
            log.lines().filter(|line| line.ends_with(version)).count()
        };
        let before = answers(version);
        let arguments = ["cat", "--no-cache", "--credentials", text(&credentials), &location];
        assert_same_bytes(version, &run(THINORIGIN, &arguments).stdout, &wanted);
        let options = backends::Options::default()
            .with_credentials(backends::Credentials::load(Some(&credentials)).unwrap());
        let outcome = runtime.block_on(async {
            let source = backends::open(&location.parse().unwrap(), &options).await.unwrap();
            backends::testing::conforms(&source, &content).await
        });
        assert_eq!(outcome, Ok(()), "{version}");
        assert!(answers(version) > before + 10, "nothing was asked in {version}");
    }
}

#[test]
fn a_proxy_is_gone_through_where_the_credentials_name_one() {
    let test = "a_proxy_is_gone_through_where_the_credentials_name_one";
    if !has(test, &["nginx", "openssl", "qemu-img", "tinyproxy"]) {
        return;
    }
    let dir = Dir::new();
    let (_, wanted) = image(&dir);
    let http = Lab::start("http", &dir, &["--root", text(dir.path()), "--tls"]);
    let proxy = Lab::start("proxy", &dir, &[]);
    let (url, word) = (proxy.value("PROXY_URL"), proxy.value("PROXY_WORD"));
    let credentials = dir.join("credentials.toml");
    for (server, asked) in [("HTTP_URL", "GET http://"), ("HTTPS_URL", "CONNECT ")] {
        let server = http.value(server);
        let location = format!("{server}/{SPELLED}");
        let through = |proxy: &str| {
            let _ = fs::remove_file(&credentials);
            let section =
                format!("[\"{server}/\"]\nca = \"{}\"\nproxy = \"{proxy}\"\n", http.value("HTTPS_CA"));
            write_credentials(&credentials, &section);
            let arguments = ["cat", "-vvv", "--no-cache", "--credentials", text(&credentials), &location];
            let output = Command::new(THINORIGIN).args(arguments).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!said.contains(&word), "{said}");
            (output, said)
        };
        let (output, said) = through(&url);
        assert!(output.status.success(), "{said}");
        assert_same_bytes(&server, &output.stdout, &wanted);
        let log = fs::read_to_string(proxy.value("PROXY_LOG")).unwrap();
        assert!(log.contains(asked), "nothing went through the proxy: {log}");
        let (output, said) = through(&url.replace(&word, "another"));
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(SPELLED), "{said}");
    }
    proxy.run("stop", &[]);
    let (code, said) = outcome(&[
        "info",
        "--no-cache",
        "--credentials",
        text(&credentials),
        &format!("{}/{SPELLED}", http.value("HTTPS_URL")),
    ]);
    assert!(code == Some(1) && said.contains("cannot be reached"), "{said}");
}

#[test]
fn a_client_certificate_opens_what_wants_one() {
    let test = "a_client_certificate_opens_what_wants_one";
    if !has(test, &["nginx", "openssl", "qemu-img"]) {
        return;
    }
    let dir = Dir::new();
    let (image, wanted) = image(&dir);
    let http = Lab::start("http", &dir, &["--root", text(dir.path()), "--client-certificate"]);
    let (url, ca, client) = (http.value("HTTPS_URL"), http.value("HTTPS_CA"), http.value("HTTPS_CLIENT"));
    let credentials = dir.join("credentials.toml");
    let trusting = format!("[\"{url}/\"]\nca = \"{ca}\"\n");
    let location = format!("{url}/{SPELLED}");
    let cat = |sections: &str| {
        let _ = fs::remove_file(&credentials);
        write_credentials(&credentials, sections);
        let arguments = ["cat", "--no-cache", "--credentials", text(&credentials), &location];
        Command::new(THINORIGIN).args(arguments).output().unwrap()
    };
    let served = cat(&format!("{trusting}certificate = \"{client}\"\n"));
    assert_same_bytes("with both", &served.stdout, &wanted);
    for (sections, word) in [(trusting.as_str(), "status 400"), ("", "certificate")] {
        let refused = cat(sections);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains(word) && said.contains(SPELLED), "no {word:?} in: {said}");
    }
    drop(image);
}

/// Numbers that are not random, and look it (xorshift64).
fn noise(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn an_object_replaced_while_it_is_read_is_never_mixed() {
    const SIZE: usize = 1 << 20;
    const SWAPS: u64 = 1000;
    let test = "an_object_replaced_while_it_is_read_is_never_mixed";
    if !has(test, &["nginx"]) {
        return;
    }
    let dir = Dir::new();
    let http = Http::start(&dir);
    let (object, next) = (dir.join("object"), dir.join("next"));
    // Every word says of which version it is. nginx tells versions by size and second.
    let put = |version: u64| {
        fs::write(&next, version.to_le_bytes().repeat(SIZE / 8)).unwrap();
        let file = fs::File::options().write(true).open(&next).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + version)).unwrap();
        fs::rename(&next, &object).unwrap();
    };
    let location: backends::Location = format!("{}/object", http.url).parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut state, mut changed, mut whole) = (1, 0, 0);
    put(0);
    for version in 1..=SWAPS {
        let reads = runtime.block_on(async {
            let source = backends::open(&location, &backends::Options::default()).await.unwrap();
            let source = Arc::new(source);
            let reads: Vec<_> = (0..8)
                .map(|_| {
                    let (source, start) = (source.clone(), noise(&mut state) % (SIZE as u64 / 8) * 8);
                    let end = (start + noise(&mut state) % (256 << 10)).min(SIZE as u64);
                    tokio::spawn(async move { source.read(start..end).await })
                })
                .collect();
            // As soon as some of them are over, however fast this machine is.
            let over = noise(&mut state) as usize % reads.len();
            while reads.iter().filter(|read| read.is_finished()).count() < over {
                tokio::task::yield_now().await;
            }
            tokio::task::block_in_place(|| put(version));
            futures_util::future::join_all(reads).await
        });
        for read in reads {
            match read.unwrap() {
                Ok(bytes) => {
                    let old = (version - 1).to_le_bytes();
                    assert!(bytes.chunks(8).all(|word| *word == old[..word.len()]), "swap {version}");
                    whole += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind, backends::Kind::Changed, "{error}");
                    changed += 1;
                }
            }
        }
    }
    assert!(
        changed > 100 && whole > 100,
        "the swaps came neither too early nor too late: {changed}, {whole}"
    );
}

#[test]
fn an_object_that_is_replaced_is_said_once_and_is_another_when_it_is_opened_again() {
    let test = "an_object_that_is_replaced_is_said_once_and_is_another_when_it_is_opened_again";
    if !has(test, &["nginx", "nbdcopy"]) {
        return;
    }
    let dir = Dir::new();
    let http = Http::start(&dir);
    let content = |generation: u8| vec![generation; 8 << 20];
    let put = |generation: u8| {
        fs::write(dir.join("next"), content(generation)).unwrap();
        let file = fs::File::options().write(true).open(dir.join("next")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(generation))).unwrap();
        fs::rename(dir.join("next"), dir.join("disk.img")).unwrap();
    };
    put(1);
    let cache = dir.join("cache");
    let location = format!("{}/disk.img", http.url);
    let arguments = ["--cache", text(&cache), "--format", "raw", &location];
    let server = Server::start(&dir, &arguments);
    let mut client = Nbd::connect(&server.socket).unwrap();
    assert_eq!(client.read(1 << 20, 4096).unwrap(), Ok(vec![1; 4096]));
    put(2);
    std::thread::scope(|scope| {
        for reader in 4..8 {
            let socket = &server.socket;
            scope.spawn(move || {
                let mut client = Nbd::connect(socket).unwrap();
                for _ in 0..3 {
                    let read = client.read(reader << 20, 4096).unwrap();
                    assert_eq!(read.map(|bytes| bytes.len()), Err(5));
                }
            });
        }
    });
    let log = server.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("changed since it was opened")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("ERROR") && lines[0].contains(&location), "{log}");
    server.terminate();
    let server = Server::start(&dir, &arguments);
    check(&dir, &server, "", &content(2));
    server.terminate();
    let listed = run(THINORIGIN, &["cache", "list", "--json", "--cache", text(&cache)]).stdout;
    let listed: Vec<serde_json::Value> = serde_json::from_slice(&listed).unwrap();
    assert_eq!(listed.len(), 2, "each under its own name: {listed:?}");
}

#[test]
fn no_secret_is_ever_shown() {
    let test = "no_secret_is_ever_shown";
    if !has(test, &["nginx", "openssl", "qemu-img", "setsid"]) {
        return;
    }
    let dir = Dir::new();
    let (_, wanted) = image(&dir);
    let secret = "s3cr3t-w0rd";
    let http =
        Lab::start("http", &dir, &["--root", text(dir.path()), "--user", "reader", "--password", secret]);
    let url = http.value("HTTP_URL");
    let credentials = dir.join("credentials.toml");
    let section = |prefix: &str, rest: &str| format!("[\"{prefix}\"]\n{rest}\n");
    // One that is right, and others that servers refuse or that cannot be reached.
    let sections = [
        section(&format!("{url}/"), &format!("username = \"reader\"\npassword = \"{secret}\"")),
        section("http://127.0.0.1:1/token/", &format!("token = \"{secret}\"")),
        section("http://127.0.0.1:1/header/", &format!("headers = {{ x-key = \"{secret}\" }}")),
        section("smb://127.0.0.1:1/", &format!("username = \"reader\"\npassword = \"{secret}\"")),
        section(
            "s3://bucket/",
            &format!(
                "endpoint = \"{url}\"\naccess_key = \"key\"\nsecret_key = \"{secret}\"\nsession_token = \"{secret}\""
            ),
        ),
    ];
    write_credentials(&credentials, &sections.concat());
    let cache = dir.join("cache");
    let encoded = "cmVhZGVyOnMzY3IzdC13MHJk"; // base64 of reader:s3cr3t-w0rd
    let hidden = |what: &str, said: &[u8]| {
        let said = String::from_utf8_lossy(said);
        for form in [secret, encoded] {
            assert!(!said.contains(form), "{what}: {said}");
        }
    };
    let locations = [
        format!("{url}/{SPELLED}"),
        "http://127.0.0.1:1/token/a".to_owned(),
        "http://127.0.0.1:1/header/a".to_owned(),
        "smb://127.0.0.1:1/share/a".to_owned(),
        "s3://bucket/a".to_owned(),
        format!("{url}/missing?X-Amz-Signature={secret}"),
    ];
    for location in &locations {
        for command in [&["info", "--json"][..], &["map"], &["check"]] {
            let output = Command::new(THINORIGIN)
                .args(command)
                .args(["-vvv", "--credentials", text(&credentials), "--cache", text(&cache), location])
                .env("RUST_LOG", "trace")
                .output()
                .unwrap();
            hidden(location, &[output.stdout, output.stderr].concat());
        }
    }
    let log = fs::File::create(dir.join("log")).unwrap();
    let socket = dir.join("nbd.sock");
    let mut server = Command::new(THINORIGIN)
        .args(["serve", "-vvv", "--unix", text(&socket), "--credentials", text(&credentials)])
        .args(["--cache", text(&cache), &locations[0]])
        .env("RUST_LOG", "trace")
        .stderr(log)
        .spawn()
        .unwrap();
    let uri = format!("nbd+unix:///?socket={}", text(&socket));
    let mut tries = 0;
    while !socket.exists() && tries < 500 {
        tries += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    run("nbdcopy", &[&uri, text(&dir.join("copy"))]);
    let read = fs::read(dir.join("copy")).unwrap();
    for file in ["cmdline", "environ", "comm"] {
        hidden(file, &fs::read(format!("/proc/{}/{file}", server.id())).unwrap());
    }
    run("kill", &["-TERM", &server.id().to_string()]);
    assert!(server.wait().unwrap().success());
    assert_same_bytes("with the right password", &read, &wanted);
    hidden("the log", &fs::read(dir.join("log")).unwrap());
    for object in fs::read_dir(cache.join("objects")).unwrap() {
        hidden("the cache", &fs::read(object.unwrap().path().join("meta")).unwrap());
    }
}
