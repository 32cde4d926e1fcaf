use super::*;
use proptest::prelude::*;

/// `NLMSG_ERROR` with `errno`, as the kernel sends it: with the request's header behind it.
fn error(errno: i32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&36_u32.to_ne_bytes());
    bytes.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
    bytes.extend_from_slice(&[0; 10]);
    bytes.extend_from_slice(&errno.to_ne_bytes());
    bytes.extend_from_slice(&[0; 16]);
    bytes
}

/// What the kernel answers CONNECT with: family 27, command 1, index 3.
fn connected() -> Vec<u8> {
    let mut bytes = request(27, 1, &Attributes::default().u32(1, 3));
    bytes.extend_from_slice(&error(0));
    bytes
}

#[test]
fn a_request_is_laid_out_as_the_kernel_reads_it() {
    let inner = Attributes::default().u32(1, 5);
    let sockets = Attributes::default().nested(1, &inner).nested(1, &Attributes::default().u32(1, 6));
    let bytes = request(27, 1, &Attributes::default().string(10, "abcd").nested(7, &sockets));
    let expected: Vec<u8> = [
        &60_u32.to_ne_bytes()[..],
        &27_u16.to_ne_bytes(),
        &5_u16.to_ne_bytes(),
        &[0; 8],
        &[1, 1, 0, 0],
        &9_u16.to_ne_bytes(),
        &10_u16.to_ne_bytes(),
        b"abcd\0\0\0\0",
        &28_u16.to_ne_bytes(),
        &0x8007_u16.to_ne_bytes(),
        &12_u16.to_ne_bytes(),
        &0x8001_u16.to_ne_bytes(),
        &8_u16.to_ne_bytes(),
        &1_u16.to_ne_bytes(),
        &5_u32.to_ne_bytes(),
        &12_u16.to_ne_bytes(),
        &0x8001_u16.to_ne_bytes(),
        &8_u16.to_ne_bytes(),
        &1_u16.to_ne_bytes(),
        &6_u32.to_ne_bytes(),
    ]
    .concat();
    assert_eq!(bytes, expected);
}

#[test]
fn an_answer_and_its_acknowledgement() {
    let datagram = connected();
    let mut found = messages(&datagram);
    let Some(Ok(Message::Attributes(body))) = found.next() else { panic!("no answer") };
    assert_eq!(attribute(body, 1), Some(&3_u32.to_ne_bytes()[..]));
    assert_eq!(attribute(body, 2), None);
    assert_eq!(found.next(), Some(Ok(Message::Done(0))));
    assert_eq!(found.next(), None);
    assert_eq!(messages(&error(-16)).collect::<Vec<_>>(), [Ok(Message::Done(-16))]);
}

#[test]
fn a_message_cut_short_is_garbled() {
    let datagram = connected();
    for len in 1..datagram.len() {
        let last = messages(&datagram[..len]).last();
        let whole = len == datagram.len() - 36;
        assert_eq!(last == Some(Err(Garbled)), !whole, "{len} bytes");
    }
    assert_eq!(messages(&[0; 16]).collect::<Vec<_>>(), [Err(Garbled)]);
    assert_eq!(attributes(&[3, 0, 1, 0, 9, 9, 9, 9]).count(), 0);
    assert_eq!(attributes(&[]).count(), 0);
}

proptest! {
    #[test]
    fn nothing_the_kernel_could_send_is_read_past_its_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let read: usize = messages(&bytes)
            .filter_map(|message| match message {
                Ok(Message::Attributes(body)) => Some(attributes(body).map(|(_, value)| value.len()).sum::<usize>()),
                _ => None,
            })
            .sum();
        prop_assert!(read <= bytes.len());
    }
}
