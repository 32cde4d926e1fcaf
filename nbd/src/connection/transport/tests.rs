use super::super::outbox::Outbox;
use super::*;
use crate::wire::Sink;
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What comes next.
async fn filled(stream: &mut Stream) -> Vec<u8> {
    let mut input = BytesMut::with_capacity(64);
    let filled = poll_fn(|cx| stream.poll_fill(cx, &mut input));
    timeout(Duration::from_secs(10), filled).await.expect("it is not told of").unwrap();
    input.to_vec()
}

/// A stream that is set aside, and its other end.
fn aside() -> (Stream, UnixStream) {
    let (own, other) = UnixStream::pair().unwrap();
    let mut stream = Stream::from(own);
    stream.set_aside(&Handle::current());
    assert!(stream.is_aside() && stream.is_plain());
    (stream, other)
}

#[tokio::test]
async fn what_is_set_aside_can_be_asked_and_sent_to() {
    let (mut stream, mut other) = aside();
    let mut input = BytesMut::new();
    assert_eq!(stream.fill_now(&mut input).unwrap(), None);
    other.write_all(b"request").await.unwrap();
    assert_eq!(stream.fill_now(&mut input).unwrap(), Some(7));
    assert_eq!(&input[..], b"request");
    let mut outbox = Outbox::by_kernel();
    outbox.bytes(b"answer");
    poll_fn(|cx| stream.poll_send(cx, &mut outbox)).await.unwrap();
    let mut answer = [0; 6];
    other.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"answer");
    assert!(stream.is_aside());
}

#[tokio::test]
async fn what_is_waited_for_is_listened_to_again() {
    let (mut stream, mut other) = aside();
    let later = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        other.write_all(b"late").await.unwrap();
        other
    });
    assert_eq!(filled(&mut stream).await, b"late");
    assert!(!stream.is_aside());
    // Also what came before that.
    let mut other = later.await.unwrap();
    stream.set_aside(&Handle::current());
    other.write_all(b"more").await.unwrap();
    assert_eq!(filled(&mut stream).await, b"more");
    stream.set_aside(&Handle::current());
    drop(other);
    assert_eq!(filled(&mut stream).await, b"");
}

#[tokio::test]
async fn so_is_a_socket_that_is_full() {
    let (mut stream, mut other) = aside();
    let content = vec![7; 8 << 20];
    let mut outbox = Outbox::by_kernel();
    outbox.bytes(&content);
    let taken = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut taken = vec![0; 8 << 20];
        other.read_exact(&mut taken).await.unwrap();
        taken
    });
    let sent = poll_fn(|cx| stream.poll_send(cx, &mut outbox));
    timeout(Duration::from_secs(10), sent).await.expect("nobody tells that there is room").unwrap();
    assert!(taken.await.unwrap() == content && !stream.is_aside());
}

#[tokio::test]
async fn tcp_is_set_aside_too_and_comes_back_as_what_it_was() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let mut stream = Stream::from(listener.accept().await.unwrap().0);
    stream.set_aside(&Handle::current());
    assert!(stream.is_aside());
    stream.rehome().unwrap();
    assert!(matches!(stream, Stream::Tcp(_)));
    other.write_all(b"request").await.unwrap();
    assert_eq!(filled(&mut stream).await, b"request");
}
