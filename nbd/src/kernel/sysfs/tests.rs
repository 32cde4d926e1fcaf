use super::*;

/// A directory like a connected device's.
fn device() -> (tempfile::TempDir, Sysfs) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd7");
    fs::create_dir_all(path.join("queue")).unwrap();
    fs::create_dir_all(path.join("holders/dm-3")).unwrap();
    for (name, text) in
        [("pid", "412\n"), ("backend", "smctl:x\n"), ("size", "2048\n"), ("inflight", "       3        1\n")]
    {
        fs::write(path.join(name), text).unwrap();
    }
    (directory, Sysfs(path))
}

#[test]
fn facts_of_a_connected_device() {
    let (_directory, sysfs) = device();
    assert!(sysfs.connected());
    assert_eq!(sysfs.backend().as_deref(), Some("smctl:x"));
    assert_eq!(sysfs.size(), 1 << 20);
    assert_eq!(sysfs.inflight(), 4);
    assert_eq!(sysfs.holders(), ["dm-3"]);
    sysfs.set_queue("read_ahead_kb", 512).unwrap();
    assert_eq!(fs::read_to_string(sysfs.0.join("queue/read_ahead_kb")).unwrap(), "512");
}

#[test]
fn facts_of_a_device_that_is_not_there() {
    let (directory, _) = device();
    let sysfs = Sysfs(directory.path().join("nbd8"));
    assert!(!sysfs.connected());
    assert_eq!((sysfs.backend(), sysfs.size(), sysfs.inflight()), (None, 0, 0));
    assert!(sysfs.holders().is_empty());
    let error = sysfs.set_queue("read_ahead_kb", 512).unwrap_err();
    assert!(error.to_string().contains("nbd8/queue/read_ahead_kb"), "{error}");
}

#[test]
fn only_devices_count() {
    let (directory, _) = device();
    for name in ["nbd0", "nbd12", "nbd0p1", "sda", "nbd"] {
        fs::create_dir(directory.path().join(name)).unwrap();
    }
    assert_eq!(indices_in(directory.path()).unwrap(), [0, 7, 12]);
}
