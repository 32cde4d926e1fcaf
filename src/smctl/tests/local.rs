//! How much of a VDI's template is local, as a server tells it.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

/// Answers every request to the control socket of `stage` that attachments are asked for with `attached`, for as long as the
/// test runs.
fn serve(stage: &mut Stage, attached: &Value) {
    let path = stage.dir.path().join("admin.sock");
    let listener = UnixListener::bind(&path).unwrap();
    stage.admin = format!("unix:{}", path.display());
    let attached = attached.to_string();
    std::thread::spawn(move || {
        // What a client that has gone does not take is nobody's loss.
        listener.incoming().flatten().for_each(|stream| drop(answer(&stream, &attached)));
    });
}

fn answer(mut stream: &UnixStream, attached: &str) -> std::io::Result<()> {
    let head: Vec<String> = BufReader::new(stream)
        .lines()
        .map_while(std::result::Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    // How much is local costs the server time, and is said to who asks for it.
    let body = match head.first().is_some_and(|line| line.starts_with("GET /v1/attachments?progress=true ")) {
        true => attached,
        false => "{}",
    };
    let len = body.len();
    write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n{body}")
}

/// A stage whose template `t` is attached, and is as local as `progress` says.
fn stage(progress: &Value) -> Stage {
    let mut stage = Stage::furnished();
    let shown = stage.look("vdi info sr t --json");
    let template = document("vdi info", &shown.stdout)["uuid"].as_str().unwrap().to_owned();
    let attached = |key: String, progress: &Value| {
        serde_json::json!({
            "key": key, "device": "/dev/nbd0", "index": 0, "location": "/images/7", "format": "raw", "pin": "",
            "size": 1024, "serving": true, "progress": progress,
        })
    };
    let other = serde_json::json!({"data": 7, "local": 7});
    let answer = [attached("other".to_owned(), &other), attached(format!("template:{template}"), progress)];
    serve(&mut stage, &answer.into_iter().collect());
    stage
}

#[test]
fn a_vdi_tells_how_much_of_its_template_is_local_and_when_it_will_be() {
    let growing = serde_json::json!({"data": 8 << 20, "local": 2 << 20, "rate": 1 << 20, "seconds_left": 6});
    let still = serde_json::json!({"data": 8 << 20, "local": 2 << 20});
    for (progress, words) in
        [(growing, "25 % (1 MiB/s, 6 s left) of its template"), (still, "25 % of its template")]
    {
        let stage = stage(&progress);
        // The template itself, a clone of it, and what was made of that.
        for vdi in ["t", "a", "s", "b"] {
            let line = format!("vdi info sr {vdi}");
            let shown = stage.look(&line).stdout;
            let local: Vec<_> =
                shown.lines().filter_map(|line| line.trim().strip_prefix("local  ")).collect();
            assert_eq!(local, [words], "{line}: {shown}");
            let shown = document(&line, &stage.look(&format!("{line} --json")).stdout);
            assert_eq!(shown["local"], progress, "{line}");
        }
        // Another template, which is not attached, and disks without one.
        for vdi in ["u", "e", "p"] {
            let line = format!("vdi info sr {vdi}");
            let shown = stage.look(&line).stdout;
            assert!(!shown.contains("of its template"), "{line}: {shown}");
            let shown = document(&line, &stage.look(&format!("{line} --json")).stdout);
            assert!(shown.get("local").is_none(), "{line}: {shown}");
        }
    }
}
