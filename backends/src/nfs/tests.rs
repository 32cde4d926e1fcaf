use super::*;
use nfs3_server::memfs::{MemFs, MemFsConfig};
use nfs3_server::tcp::{NFSTcp, NFSTcpListener};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

fn content(len: usize) -> Bytes {
    (0..len as u32 / 4).flat_map(u32::to_le_bytes).collect()
}

const SIZE: usize = 2_400_000;

/// An independent server with `/images/a b.img` and a few other things.
async fn server(port: u16) -> (u16, JoinHandle<()>) {
    let mut config = MemFsConfig::default();
    config.add_dir("/images");
    config.add_dir("/images/dir");
    config.add_file("/images/a b.img", content(SIZE).to_vec());
    config.add_file("/images/empty", Vec::new());
    let listener =
        NFSTcpListener::bind(&format!("127.0.0.1:{port}"), MemFs::new(config).unwrap()).await.unwrap();
    let port = listener.get_listen_port();
    (port, tokio::spawn(async move { listener.handle_forever().await.unwrap() }))
}

fn options() -> Options {
    Options::default().with_policy(Policy { deadline: Duration::from_secs(3), ..Policy::default() })
}

async fn open(port: u16, path: &str) -> Result<NfsSource, Error> {
    NfsSource::open(&format!("nfs://127.0.0.1:{port}/{path}").parse().unwrap(), &options()).await
}

/// A relay whose connections can be cut.
async fn relay(to: u16) -> (u16, Arc<std::sync::Mutex<Vec<JoinHandle<()>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let links = Arc::<std::sync::Mutex<Vec<JoinHandle<()>>>>::default();
    let shared = links.clone();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let link = tokio::spawn(async move {
                let mut to = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
            shared.lock().unwrap().push(link);
        }
    });
    (port, links)
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_exact_alone_and_all_at_once() {
    let (port, _server) = server(0).await;
    let source = Arc::new(open(port, "images/a%20b.img").await.unwrap());
    assert_eq!(source.len(), SIZE as u64);
    assert!(source.identity().validator.starts_with("mtime:"));
    let end = SIZE as u64;
    for range in [0..1, 0..end, end - 1..end, 4095..4097, 1_048_575..2_097_153, 5..5, end..end] {
        let expect = content(SIZE).slice(range.start as usize..range.end as usize);
        assert!(source.read(range.clone()).await.unwrap() == expect, "{range:?}");
    }
    assert_eq!(crate::testing::conforms(&*source, &content(SIZE)).await, Ok(()));
    let readers: Vec<_> = (0..200u64)
        .map(|i| {
            let source = source.clone();
            let start = i * 7919 * 3 % (end - 100_000);
            tokio::spawn(
                async move { (start, source.read(start..start + 4096 * (i % 20 + 1)).await.unwrap()) },
            )
        })
        .collect();
    for reader in readers {
        let (start, bytes) = reader.await.unwrap();
        assert!(bytes == content(SIZE).slice(start as usize..start as usize + bytes.len()));
    }
    let empty = open(port, "images/empty").await.unwrap();
    assert_eq!(empty.read(0..0).await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_is_said() {
    let (port, _server) = server(0).await;
    assert_eq!(open(port, "images/none").await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(open(port, "none/a").await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(open(port, "images/dir").await.unwrap_err().kind, Kind::Unsupported);
    assert_eq!(open(port, "").await.unwrap_err().kind, Kind::Location);
    assert_eq!(open(port, "images/..%2f..").await.unwrap_err().kind, Kind::Location);
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = open(unused, "a").await.unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable);
    assert!(error.message.contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_made_again_and_the_reads_repeated() {
    let (server_port, _server) = server(0).await;
    let (port, links) = relay(server_port).await;
    let source = Arc::new(open(port, "images/a%20b.img").await.unwrap());
    let reader = tokio::spawn({
        let source = source.clone();
        async move {
            let expect = content(SIZE);
            for i in 0..300 {
                let start = i * 5_000;
                assert!(
                    source.read(start..start + 300_000).await.unwrap() == expect[start as usize..][..300_000]
                );
            }
        }
    });
    while !reader.is_finished() {
        tokio::time::sleep(Duration::from_millis(60)).await;
        links.lock().unwrap().drain(..).for_each(|link| link.abort());
    }
    reader.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_read_harms_no_other() {
    let (port, _server) = server(0).await;
    let source = Arc::new(open(port, "images/a%20b.img").await.unwrap());
    let expect = content(SIZE);
    for i in 0..50u64 {
        let dropped = tokio::spawn({
            let source = source.clone();
            async move { source.read(0..SIZE as u64).await }
        });
        tokio::time::sleep(Duration::from_micros(i * 20)).await;
        dropped.abort();
        assert!(source.read(i * 1000..i * 1000 + 64).await.unwrap() == expect[i as usize * 1000..][..64]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_file_is_an_error_for_good() {
    let (first, _first) = server(0).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let (second, _second) = server(0).await;
    let target = Arc::new(std::sync::atomic::AtomicU16::new(first));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = target.clone();
    let accept = tokio::spawn(async move {
        let mut links = tokio::task::JoinSet::new();
        while let Ok((mut from, _)) = listener.accept().await {
            let to = to.load(std::sync::atomic::Ordering::SeqCst);
            if to == 0 {
                // What was connected before is cut.
                links.abort_all();
                continue;
            }
            links.spawn(async move {
                let mut to = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    let source = open(port, "images/a%20b.img").await.unwrap();
    source.read(0..4).await.unwrap();
    target.store(0, std::sync::atomic::Ordering::SeqCst);
    drop(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    tokio::time::sleep(Duration::from_millis(50)).await;
    target.store(second, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(source.read(0..4).await.unwrap_err().kind, Kind::Changed);
    target.store(first, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(source.read(0..4).await.unwrap_err().kind, Kind::Changed);
    accept.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_lie_are_errors_within_the_deadline() {
    let huge = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    let empty_fragments = [0; 64];
    let no_reply = [0x80, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 1];
    for answer in [&b""[..], &huge, &empty_fragments, &no_reply, b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = answer.to_vec();
        let server = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(&answer).await;
                held.push(stream);
            }
        });
        let started = Instant::now();
        let error = open(port, "a").await.unwrap_err();
        assert!(matches!(error.kind, Kind::Unreachable | Kind::BadAnswer), "{error}");
        assert!(started.elapsed() < Duration::from_secs(4));
        server.abort();
    }
}
