//! The control socket, as its OpenAPI document has it, and exports that come and go while others are read.

mod common;

use common::nbd::Nbd;
use common::{Dir, Server, becomes_true, has, run, text};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

/// The status and body of a request on the control socket of `dir`.
fn ask(dir: &Dir, method: &str, resource: &str, body: Option<&Value>) -> (u16, String) {
    let body = body.map(Value::to_string);
    send(dir, method, resource, body.as_deref().map(|body| ("application/json", body)))
}

/// The same, with a body of any kind: its type, and what it is.
fn send(dir: &Dir, method: &str, resource: &str, body: Option<(&str, &str)>) -> (u16, String) {
    let mut command = Command::new("curl");
    command.args(["--silent", "--unix-socket", text(&dir.join("admin.sock")), "--request", method]);
    if let Some((kind, body)) = body {
        command.args(["--header", &format!("content-type: {kind}"), "--data-binary", body]);
    }
    let url = format!("http://thinorigin{resource}");
    let output = command.args(["--write-out", "\n%{http_code}", &url]).output().unwrap();
    assert!(output.status.success(), "{method} {resource}: {output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let (body, status) = said.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn get(dir: &Dir, resource: &str) -> Value {
    let (status, body) = ask(dir, "GET", resource, None);
    assert_eq!(status, 200, "{resource}: {body}");
    serde_json::from_str(&body).unwrap()
}

/// Fails unless `value` is as `schema` says. Knows the words that the document uses.
fn check(document: &Value, schema: &Value, value: &Value, what: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = document.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null);
        assert!(schema.is_object(), "{what}: nothing is at {reference}");
        return check(document, schema, value, what);
    }
    if let Some(one_of) = schema["oneOf"].as_array() {
        let null = one_of.iter().any(|schema| schema["type"] == "null");
        return match value {
            Value::Null => assert!(null, "{what}"),
            value => check(document, &one_of[0], value, what),
        };
    }
    match schema["type"].as_str() {
        Some("object") => {
            let fields = value.as_object().unwrap_or_else(|| panic!("{what} is no object: {value}"));
            for name in schema["required"].as_array().into_iter().flatten() {
                assert!(fields.contains_key(name.as_str().unwrap()), "{what} has no {name}: {value}");
            }
            for (name, value) in fields {
                let Some(properties) = schema["properties"].as_object() else { continue };
                let schema =
                    properties.get(name).unwrap_or_else(|| panic!("{what}: {name} is not described"));
                check(document, schema, value, &format!("{what}, {name}"));
            }
        }
        Some("array") => {
            let items = value.as_array().unwrap_or_else(|| panic!("{what} is no array: {value}"));
            items.iter().for_each(|item| check(document, &schema["items"], item, what));
        }
        Some("string") => assert!(value.is_string(), "{what}: {value}"),
        Some("integer") => assert!(value.is_u64(), "{what}: {value}"),
        Some("boolean") => assert!(value.is_boolean(), "{what}: {value}"),
        other => panic!("{what}: a schema of type {other:?}"),
    }
}

fn names(dir: &Dir) -> Vec<String> {
    let exports = get(dir, "/v1/exports");
    exports.as_array().unwrap().iter().map(|export| export["name"].as_str().unwrap().to_owned()).collect()
}

/// A directory with three disks that differ, and a server of the first.
fn served(more: &[&str]) -> (Dir, Server) {
    let dir = Dir::new();
    for (name, byte) in [("one", 1), ("two", 2), ("three", 3)] {
        fs::write(dir.join(&format!("{name}.img")), vec![byte; 1 << 20]).unwrap();
    }
    let admin = format!("unix:{}", text(&dir.join("admin.sock")));
    let one = dir.join("one.img");
    let arguments = [&["--no-cache", "--admin", &admin][..], more, &[text(&one)]].concat();
    let server = Server::start(&dir, &arguments);
    (dir, server)
}

#[test]
fn every_resource_is_as_its_document_says() {
    if !has("every_resource_is_as_its_document_says", &["curl"]) {
        return;
    }
    let (dir, server) = served(&[]);
    let document = get(&dir, "/v1/openapi.json");
    let two = json!({ "location": text(&dir.join("two.img")), "name": "2" });
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, described) in methods.as_object().unwrap() {
            let (query, body) = match (path.as_str(), method.as_str()) {
                ("/v1/exports", "post") => ("", Some(&two)),
                ("/v1/exports", "delete") => ("?name=2", None),
                // The kernel here may have no nbd: that is an answer, too.
                ("/v1/attachments", "post") => ("", Some(&two)),
                ("/v1/attachments", "delete") => ("?key=nothing", None),
                ("/v1/attachments/content", "get") => ("?key=nothing", None),
                ("/v1/attachments", "get") => ("?progress=true", None),
                _ => ("", None),
            };
            let body = body.map(|body| match path.as_str() {
                "/v1/attachments" => {
                    json!({ "location": body["location"], "key": "test", "index": 4_000_000 })
                }
                _ => body.clone(),
            });
            let what = format!("{method} {path}{query}");
            let (status, answer) =
                ask(&dir, &method.to_uppercase(), &format!("{path}{query}"), body.as_ref());
            let answers = &described["responses"][status.to_string()];
            assert!(answers.is_object(), "{what}: status {status} is not described: {answer}");
            if let Some(schema) = answers["content"].get("application/json") {
                let value = serde_json::from_str(&answer).unwrap();
                check(&document, &schema["schema"], &value, &what);
            }
            asked += 1;
        }
    }
    assert!(asked >= 9, "{asked} requests");
    // So are the answers to what makes no sense.
    let spec = two.to_string();
    for (method, resource, kind, body, status, word) in [
        ("POST", "/v1/exports", "application/json", "{", 400, "line 1 column 1"),
        ("POST", "/v1/exports", "application/json", "", 400, "EOF"),
        ("POST", "/v1/exports", "application/json", "{\"location\": 1}", 422, "location"),
        ("POST", "/v1/exports", "text/plain", &spec, 415, "application/json"),
        ("POST", "/v1/attachments", "application/json", "[]", 422, "invalid length 0"),
        ("POST", "/v1/attachments", "application/json", "nothing", 400, "line 1 column 2"),
        ("POST", "/v1/attachments", "application/json", "{\"location\": \"\u{7f}", 400, "EOF"),
        ("POST", "/v1/attachments", "text/plain", &spec, 415, "application/json"),
        ("DELETE", "/v1/exports", "text/plain", "", 400, "name"),
        ("DELETE", "/v1/attachments?kay=x", "text/plain", "", 400, "key"),
        ("GET", "/v1/attachments?progress=perhaps", "text/plain", "", 400, "progress"),
    ] {
        let what = format!("{method} {resource} {body}");
        let (answered, answer) = send(&dir, method, resource, Some((kind, body)));
        assert_eq!(answered, status, "{what}: {answer}");
        assert!(answer.contains(word), "{what}: {word:?} is missing in: {answer}");
        let path = resource.split('?').next().unwrap();
        let described = &document["paths"][path][method.to_lowercase()]["responses"][status.to_string()];
        assert!(described["content"]["text/plain"].is_object(), "{what}: {status} is not described");
    }
    // What the document does not have is not there.
    assert_eq!(ask(&dir, "GET", "/v1/nothing", None).0, 404);
    assert_eq!(ask(&dir, "PUT", "/v1/exports", None).0, 405);
    server.terminate();
}

#[test]
fn exports_come_and_go_by_request() {
    if !has("exports_come_and_go_by_request", &["curl"]) {
        return;
    }
    let (dir, server) = served(&[]);
    let spec = |name: &str, file: &str| json!({ "name": name, "location": text(&dir.join(file)) });
    assert_eq!(ask(&dir, "POST", "/v1/exports", Some(&spec("two", "two.img"))).0, 200);
    let mut client = Nbd::connect_to(&server.socket, "two").unwrap();
    assert_eq!(client.read(0, 4).unwrap().unwrap(), [2; 4]);
    let (status, body) = ask(&dir, "POST", "/v1/exports", Some(&spec("two", "three.img")));
    assert!(status == 409 && body.contains("two exports are called"), "{status} {body}");
    let (status, body) = ask(&dir, "POST", "/v1/exports", Some(&spec("four", "four.img")));
    assert!(status == 500 && body.contains("four.img"), "{status} {body}");
    let wrong = json!({ "location": "/a", "colour": "red" });
    let (status, body) = ask(&dir, "POST", "/v1/exports", Some(&wrong));
    assert!(status == 422 && body.contains("colour"), "{status} {body}");
    assert_eq!(names(&dir), ["one", "two"]);

    // A client keeps what it has.
    assert_eq!(ask(&dir, "DELETE", "/v1/exports?name=two", None).0, 200);
    assert_eq!(names(&dir), ["one"]);
    assert_eq!(client.read(4096, 4).unwrap().unwrap(), [2; 4]);
    assert!(Nbd::connect_to(&server.socket, "two").is_err());
    assert_eq!(ask(&dir, "DELETE", "/v1/exports?name=two", None), (200, "null".to_owned()));

    let (_, metrics) = ask(&dir, "GET", "/metrics", None);
    Nbd::connect(&server.socket).unwrap().read(0, 100).unwrap().unwrap();
    let (_, after) = ask(&dir, "GET", "/metrics", None);
    let reads = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("thinorigin_reads_total{export=\"one\"}"));
        line.unwrap().rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
    };
    assert_eq!(reads(&after), reads(&metrics) + 1, "{after}");
    for line in after.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("thinorigin_") && value.parse::<u64>().is_ok(), "{line}");
    }
    server.terminate();
}

#[test]
fn a_configuration_read_again_touches_only_what_changed() {
    if !has("a_configuration_read_again_touches_only_what_changed", &["curl"]) {
        return;
    }
    let config = Dir::new();
    let file = config.join("serve.toml");
    let write = |exports: &[(&str, &str)]| {
        let table = |(name, location): &(&str, &str)| {
            format!("[[export]]\nname = {name:?}\nlocation = {location:?}\n")
        };
        fs::write(&file, exports.iter().map(table).collect::<String>()).unwrap();
    };
    write(&[]);
    let (dir, server) = served(&["--config", text(&file)]);
    let place = |name: &str| text(&dir.join(name)).to_owned();
    let (two, three) = (place("two.img"), place("three.img"));
    let reload = || {
        run("kill", &["-HUP", &server.pid().to_string()]);
    };
    write(&[("a", &two), ("b", &three)]);
    reload();
    becomes_true("both are there", || names(&dir) == ["one", "a", "b"]);
    let mut a = Nbd::connect_to(&server.socket, "a").unwrap();
    let mut b = Nbd::connect_to(&server.socket, "b").unwrap();

    // One goes, one comes, one stays; those who read go on.
    write(&[("c", &three), ("a", &two)]);
    reload();
    becomes_true("c instead of b", || names(&dir) == ["one", "c", "a"]);
    assert_eq!(a.read(0, 1).unwrap().unwrap(), [2]);
    assert_eq!(b.read(0, 1).unwrap().unwrap(), [3]);
    let open = |name: &str| {
        let exports = get(&dir, "/v1/exports");
        let export =
            exports.as_array().unwrap().iter().find(|export| export["name"] == name).unwrap().clone();
        export["open"].as_bool().unwrap()
    };
    becomes_true("a new one is opened by itself", || open("c"));

    // A file with a mistake changes nothing; one bad export leaves the others.
    fs::write(&file, "[[export]]\nlocatoin = 1\n").unwrap();
    reload();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(names(&dir), ["one", "c", "a"]);
    write(&[("one", &two), ("gone", "/nowhere.img"), ("a", &two)]);
    reload();
    becomes_true("the rest", || names(&dir) == ["one", "gone", "a"]);
    assert_eq!(a.read(0, 1).unwrap().unwrap(), [2]);
    server.terminate();
}

#[test]
fn an_image_is_not_opened_for_a_client_that_is_gone() {
    let (dir, _server) = served(&[]);
    // Its image server takes requests and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let location = format!("http://{}/image", mute.local_addr().unwrap());
    let body = json!({ "location": location, "key": "k" }).to_string();
    let mut client = UnixStream::connect(dir.join("admin.sock")).unwrap();
    write!(
        client,
        "POST /v1/attachments HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let (mut asked, _) = mute.accept().unwrap();
    let mut request = [0; 4096];
    assert!(asked.read(&mut request).unwrap() > 0);
    drop(client);
    // Less than the server's patience with image servers.
    asked.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(asked.read(&mut request).unwrap(), 0);
}
