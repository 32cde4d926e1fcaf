use super::*;
use std::fs;

/// The device 7 as `files` of `/sys` have it.
fn device(files: &[(&str, &str)]) -> (tempfile::TempDir, Device) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let sysfs = Sysfs::at(directory.path().to_owned());
    (directory, Device { index: 7, path: "/dev/nbd7".into(), backend: String::new(), sysfs })
}

#[test]
fn a_device_that_somebody_stands_on_is_not_used_again() {
    for (files, word) in [
        (&[][..], None),
        (&[("inflight", "0 0")], None),
        (&[("holders/dm-3", "")], Some("in use by dm-3")),
        (&[("inflight", "2 1")], Some("has 3 requests")),
        // Once it is connected, udev may read from it.
        (&[("inflight", "2 0"), ("pid", "412")], None),
        (&[("holders/dm-3", ""), ("pid", "412")], Some("in use by dm-3")),
    ] {
        let (_directory, device) = device(files);
        match (device.left_by_nobody(), word) {
            (Ok(()), None) => {}
            (Err(error), Some(word)) => {
                assert!(error.is_busy() && error.to_string().contains(word), "{error}");
            }
            (found, _) => panic!("{files:?}: {found:?}"),
        }
    }
}

#[test]
fn a_timer_shorter_than_asked_for_is_an_error() {
    let asked = Duration::from_secs(30);
    for (files, good) in [
        (&[][..], true),
        (&[("queue/io_timeout", "30000\n")], true),
        (&[("queue/io_timeout", "60000\n")], true),
        (&[("queue/io_timeout", "29000\n")], false),
        (&[("queue/io_timeout", "0\n")], false),
    ] {
        let (_directory, device) = device(files);
        assert_eq!(device.check_timer(asked).is_ok(), good, "{files:?}");
    }
}
