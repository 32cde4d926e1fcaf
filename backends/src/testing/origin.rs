//! An HTTP server for tests: one object with ranges and preconditions, a count of what was asked, and lies on request.

use bytes::Bytes;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What the server does instead of answering well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Nothing: it answers well.
    None,
    /// This status with these further header lines, each ended by CR LF, and no body.
    Status(u16, String),
    /// The whole object with status 200.
    Whole,
    /// A page of HTML with status 200.
    Page,
    /// This text with status 200.
    Text(String),
    /// The right length from a place this many bytes further on, and says so.
    Shifted(u64),
    /// The right head without a length, and a chunked body that ends half way: only counting tells.
    Unsized,
    /// A correct 206 of at most this many bytes.
    Pieces(u64),
    /// The right head, then this many bytes of the body, then the connection ends.
    Cut(u64),
    /// A `Content-Length` and body longer than the `Content-Range` says, by this many bytes.
    Long(u64),
    /// A chunked body without end.
    Endless,
    /// The right head, half of the body, then silence.
    Stall,
    /// Silence.
    Freeze,
    /// The right head, then a byte a second.
    Drip,
    /// The connection is reset.
    Reset,
    /// Another entity tag on an otherwise right answer, whatever the precondition.
    Tag(String),
    /// The right answer, said to be gzip.
    Gzip,
    /// The right answer, with this as S3's SHA-256 of the object, in base 64.
    Sum(String),
    /// A 206 without `Content-Range`.
    Unranged,
    /// The right answer after this long.
    Late(Duration),
}

/// A server with one object, under every path. It ends when it is dropped.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    content: Bytes,
    tag: String,
    lies: VecDeque<Lie>,
    always: Lie,
    at_the_end: Lie,
    asked: Vec<Range<u64>>,
    heads: Vec<String>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Origin {
    /// A server on a free loopback port.
    pub async fn start(content: impl Into<Bytes>) -> std::io::Result<Origin> {
        Origin::listen("127.0.0.1:0", content).await
    }

    /// A server on `address`.
    pub async fn listen(address: &str, content: impl Into<Bytes>) -> std::io::Result<Origin> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            content: content.into(),
            tag: "\"1\"".to_owned(),
            lies: VecDeque::new(),
            always: Lie::None,
            at_the_end: Lie::None,
            asked: Vec::new(),
            heads: Vec::new(),
        }));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            // Connections end with the server.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, shared.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Origin { address, state, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The object's URL, with `name` as its file name.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/images/{name}", self.address)
    }

    /// Another object under the same URLs.
    pub fn replace(&self, content: impl Into<Bytes>, tag: &str) {
        let mut state = lock(&self.state);
        state.content = content.into();
        state.tag = tag.to_owned();
    }

    /// The next requests are answered so, one after the other.
    pub fn lie(&self, lies: impl IntoIterator<Item = Lie>) {
        lock(&self.state).lies.extend(lies);
    }

    /// All requests are answered so once the lies in line are used up.
    pub fn always(&self, lie: Lie) {
        lock(&self.state).always = lie;
    }

    /// Requests for so many of the last bytes are answered so.
    pub fn lie_at_the_end(&self, lie: Lie) {
        lock(&self.state).at_the_end = lie;
    }

    /// The ranges asked for so far, in order.
    pub fn asked(&self) -> Vec<Range<u64>> {
        lock(&self.state).asked.clone()
    }

    /// The request heads so far, in order, in lower case but for the first line.
    pub fn heads(&self) -> Vec<String> {
        lock(&self.state).heads.clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection, until the client closes it or a lie does.
async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    while let Some(head) = read_head(&mut stream).await {
        if head.starts_with("HEAD ") {
            // Some clients look before they read. That is answered well, whatever else is not.
            let text = {
                let state = lock(&state);
                whole(state.content.len(), &state.tag)
            };
            if stream.get_mut().write_all(text.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        let (lie, content, tag) = {
            let mut state = lock(&state);
            let size = state.content.len() as u64;
            state.asked.push(asked(&head, size).unwrap_or(0..0));
            state.heads.push(head.clone());
            let lie = match head.contains("range: bytes=-") {
                true => Some(state.at_the_end.clone()).filter(|lie| *lie != Lie::None),
                false => None,
            };
            let lie = lie.or_else(|| state.lies.pop_front());
            let lie = lie.unwrap_or_else(|| state.always.clone());
            (lie, state.content.clone(), state.tag.clone())
        };
        if !answer(stream.get_mut(), &head, lie, &content, &tag).await {
            return;
        }
    }
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            return Some(head);
        }
        head += &if head.is_empty() { line } else { line.to_ascii_lowercase() };
    }
}

/// The range in a request head for an object of `size` bytes, half open.
fn asked(head: &str, size: u64) -> Option<Range<u64>> {
    let value = head.lines().find_map(|line| line.strip_prefix("range: bytes="))?;
    match value.trim().split_once('-')? {
        ("", len) => Some(size.saturating_sub(len.parse().ok()?)..size),
        (first, last) => Some(first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?),
    }
}

/// Answers one request; false if the connection is to be closed.
async fn answer(stream: &mut TcpStream, head: &str, lie: Lie, content: &Bytes, tag: &str) -> bool {
    let size = content.len() as u64;
    match &lie {
        Lie::Status(code, headers) => {
            let text = format!("HTTP/1.1 {code} Status\r\nContent-Length: 0\r\n{headers}\r\n");
            return stream.write_all(text.as_bytes()).await.is_ok();
        }
        _ if !head.contains("\nrange: ") && lie == Lie::None => {
            return stream.write_all(whole(content.len(), tag).as_bytes()).await.is_ok()
                && stream.write_all(content).await.is_ok();
        }
        Lie::Whole => {
            return stream.write_all(whole(content.len(), tag).as_bytes()).await.is_ok()
                && stream.write_all(content).await.is_ok();
        }
        Lie::Page => return send_text(stream, "text/html", "<html>log in first</html>").await.is_ok(),
        Lie::Text(body) => return send_text(stream, "text/plain", body).await.is_ok(),
        Lie::Freeze => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            return false;
        }
        Lie::Reset => {
            let _ = socket_reset(stream);
            return false;
        }
        Lie::Late(wait) => tokio::time::sleep(*wait).await,
        _ => {}
    }
    let tag = if let Lie::Tag(other) = &lie { other } else { tag };
    let wanted = head.lines().find_map(|line| line.strip_prefix("if-match: ")).map(str::trim);
    if wanted.is_some_and(|wanted| wanted != tag) && !matches!(lie, Lie::Tag(_)) {
        return stream
            .write_all(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n")
            .await
            .is_ok();
    }
    let Some(range) = asked(head, size).filter(|range| range.start < size) else {
        let text =
            format!("HTTP/1.1 416 Range\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\n\r\n");
        return stream.write_all(text.as_bytes()).await.is_ok();
    };
    let mut range = range.start..range.end.min(size);
    match lie {
        Lie::Shifted(by) => range = (range.start + by).min(size - 1)..(range.end + by).min(size),
        Lie::Pieces(most) => range.end = range.end.min(range.start + most),
        _ => {}
    }
    let body = content.slice(range.start as usize..range.end as usize);
    let mut text = format!("HTTP/1.1 206 Partial Content\r\nETag: {tag}\r\n");
    match lie {
        Lie::Unranged => {}
        _ => text += &format!("Content-Range: bytes {}-{}/{size}\r\n", range.start, range.end - 1),
    }
    match lie {
        Lie::Unsized => text += "Transfer-Encoding: chunked\r\n",
        Lie::Endless => text += "Transfer-Encoding: chunked\r\n",
        Lie::Long(by) => text += &format!("Content-Length: {}\r\n", body.len() as u64 + by),
        _ => text += &format!("Content-Length: {}\r\n", body.len()),
    }
    if let Lie::Sum(sum) = &lie {
        text += &format!("x-amz-checksum-sha256: {sum}\r\n");
    }
    if lie == Lie::Gzip {
        text += "Content-Encoding: gzip\r\n";
    }
    text += "\r\n";
    if stream.write_all(text.as_bytes()).await.is_err() {
        return false;
    }
    send_body(stream, lie, &body).await.is_ok_and(|()| true)
}

/// The head of an answer with all of the object.
fn whole(size: usize, tag: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nETag: {tag}\r\nAccept-Ranges: bytes\r\nContent-Length: {size}\r\n\r\n")
}

async fn send_text(stream: &mut TcpStream, kind: &str, body: &str) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}

async fn send_body(stream: &mut TcpStream, lie: Lie, body: &[u8]) -> std::io::Result<()> {
    let closed = || std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
    match lie {
        Lie::Cut(most) => {
            stream.write_all(&body[..body.len().min(most as usize)]).await?;
            stream.shutdown().await?;
            Err(closed())
        }
        Lie::Stall => {
            stream.write_all(&body[..body.len() / 2]).await?;
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Err(closed())
        }
        Lie::Drip => {
            for byte in body {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(())
        }
        Lie::Long(by) => {
            stream.write_all(body).await?;
            stream.write_all(&vec![0xee; by as usize]).await
        }
        Lie::Unsized => {
            let half = &body[..body.len() / 2];
            stream.write_all(format!("{:x}\r\n", half.len()).as_bytes()).await?;
            stream.write_all(half).await?;
            stream.write_all(b"\r\n0\r\n\r\n").await
        }
        Lie::Endless => loop {
            stream.write_all(b"1000\r\n").await?;
            stream.write_all(&[0xee; 4096]).await?;
            stream.write_all(b"\r\n").await?;
        },
        _ => stream.write_all(body).await,
    }
}

/// Makes the end of the connection a reset.
fn socket_reset(stream: &TcpStream) -> std::io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?)
}
