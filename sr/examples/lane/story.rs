//! The story of an SR, told and checked.

use super::loops::Loops;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use thinorigin_sr::{
    Controller, ErrorKind, Options, Report, SrCreate, SrDestroy, SrIntroduce, VdiClone, VdiCreate, VdiInfo,
    VdiIntroduce, Work,
};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

const NOTES: &str = "/run/lane-origins";
const MIB: u64 = 1 << 20;

fn controller(dry_run: bool) -> Result<Controller> {
    let options = Options { dry_run, ..Options::default() };
    Ok(Controller::open(&options, Box::new(Loops::new(Path::new(NOTES))))?)
}

fn timed<T>(what: &str, run: impl FnOnce() -> std::result::Result<T, thinorigin_sr::Error>) -> Result<T> {
    let start = Instant::now();
    let value = run()?;
    println!("{:5} ms  {what}", start.elapsed().as_millis());
    Ok(value)
}

fn record(report: Report<VdiInfo>) -> VdiInfo {
    report.record.expect("a record after a change")
}

fn check(what: &str, holds: bool) -> Result<()> {
    if holds {
        println!("      ok  {what}");
        return Ok(());
    }
    Err(format!("not so: {what}").into())
}

fn refused<T>(what: &str, result: std::result::Result<T, thinorigin_sr::Error>) -> Result<()> {
    match result {
        Ok(_) => Err(format!("not refused: {what}").into()),
        Err(e) => {
            println!("      ok  {what}: {e}");
            if matches!(e.kind, ErrorKind::Refused | ErrorKind::NotAttached) {
                return Ok(());
            }
            Err(format!("{what} should be refused, not {:?}", e.kind).into())
        }
    }
}

fn read(device: &Path, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    File::open(device)?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn write(device: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    let file = OpenOptions::new().write(true).open(device)?;
    file.write_all_at(bytes, offset)?;
    Ok(file.sync_all()?)
}

fn output(command: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(command).args(arguments).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes an image whose every sector tells its number, sparse beyond the first MiBs.
fn image(path: &str, size: u64) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    for sector in 0..(2 * MIB / 512) {
        let mut bytes = [0; 512];
        bytes[..8].copy_from_slice(&(sector + 1).to_le_bytes());
        file.write_all_at(&bytes, sector * 512)?;
    }
    Ok(file.sync_all()?)
}

/// An SR from its making to its end on `device`, which must be empty.
pub(crate) fn tell(device: &str) -> Result<()> {
    let small = "/tmp/small.raw";
    let large = "/tmp/large.raw";
    image(small, 1 << 30)?;
    // Not a multiple of the pool's blocks.
    image(large, (100 << 30) + 512)?;

    let request = SrCreate { name: "lane".into(), devices: vec![device.into()], ..SrCreate::default() };
    let planned = controller(true)?.sr_create(&request)?;
    check("a dry run plans and does nothing", planned.steps.len() == 6 && !planned.changed())?;
    let mut smctl = controller(false)?;
    check("there is no SR", smctl.sr_list()?.is_empty())?;
    let sr = timed("sr create", || smctl.sr_create(&request))?.record.expect("an SR");
    println!("{}", serde_json::to_string(&sr)?);
    refused("an SR of the same name", smctl.sr_create(&request))?;
    refused("a device in use", smctl.sr_create(&SrCreate { name: "other".into(), ..request.clone() }))?;

    check(
        "a probe finds it by device and by group",
        smctl.sr_probe(device)?.len() == 1 && smctl.sr_probe("lane")?.len() == 1,
    )?;
    check("and nothing elsewhere", smctl.sr_probe("/dev/null")?.is_empty())?;

    let mut devices = Vec::new();
    for (name, path) in [("small", small), ("large", large)] {
        let introduce = VdiIntroduce { location: path.into(), name: None, patience: None };
        let template =
            record(timed(&format!("vdi introduce {name}"), || smctl.vdi_introduce("lane", &introduce))?);
        check("it is named after its file", template.name == name && template.kind == "template")?;
        for clone in ["a", "b"] {
            let request = VdiClone { name: Some(format!("{name}-{clone}")), size: None };
            let vdi =
                record(timed(&format!("vdi clone {name}"), || smctl.vdi_clone("lane", name, &request))?);
            let vdi = record(timed("vdi attach", || smctl.vdi_attach("lane", &vdi.name, false))?);
            devices.push(vdi.device.expect("a device"));
        }
    }
    let [small_a, small_b, large_a, _] = devices.as_slice() else {
        return Err("four devices".into());
    };
    let template = read(Path::new(small), 0, 4 << 20)?;
    check("a clone reads as its template", read(small_a, 0, 4 << 20)? == template)?;
    write(small_a, 4096, b"written to a")?;
    write(small_b, 8192, b"written to b")?;
    check("a clone keeps what is written", read(small_a, 4096, 12)? == b"written to a")?;
    check("the other clone does not have it", read(small_b, 4096, 12)? == template[4096..4108])?;
    check("around a write the template shows", read(small_a, 4608, 512)? == template[4608..5120])?;
    check("the template is untouched", read(Path::new(small), 0, 4 << 20)? == template)?;
    write(large_a, 100 << 30, &[7; 512])?;
    check("the last sector of an odd size", read(large_a, 100 << 30, 512)? == [7; 512])?;

    refused("a template with clones", smctl.vdi_forget("lane", "small"))?;
    refused("an attached disk", smctl.vdi_destroy("lane", "small-a"))?;
    refused("an SR with attached disks", smctl.sr_detach("lane"))?;
    let held = File::open(small_a)?;
    refused("an open device", smctl.vdi_detach("lane", "small-a"))?;
    drop(held);

    let request = VdiClone { name: Some("before".into()), size: None };
    let before = record(timed("vdi snapshot, attached", || smctl.vdi_snapshot("lane", "small-a", &request))?);
    write(small_a, 4096, b"overwritten!")?;
    let before = record(smctl.vdi_attach("lane", &before.uuid.to_string(), false)?);
    let before_device = before.device.expect("a device");
    check("a snapshot keeps what was", read(&before_device, 4096, 12)? == b"written to a")?;
    check(
        "a snapshot shows the template",
        read(&before_device, MIB, 4096)? == template[MIB as usize..][..4096],
    )?;
    check("a snapshot is read-only", write(&before_device, 0, b"x").is_err())?;
    smctl.vdi_detach("lane", "before")?;

    timed("vdi resize, attached", || {
        smctl.vdi_resize(
            "lane",
            "small-a",
            2 << 30,
            &mut Work { progress: &mut |_, _| (), cancelled: &|| false },
        )
    })?;
    check(
        "it has grown",
        output("blockdev", &["--getsize64", &small_a.to_string_lossy()])?.trim() == "2147483648",
    )?;
    check("beyond the image are zeros", read(small_a, 1 << 30, 4096)? == [0; 4096])?;
    refused(
        "shrinking",
        smctl.vdi_resize(
            "lane",
            "small-a",
            1 << 30,
            &mut Work { progress: &mut |_, _| (), cancelled: &|| false },
        ),
    )?;

    timed("vdi detach", || smctl.vdi_detach("lane", "small-a"))?;
    refused("reverting to what is no snapshot", smctl.vdi_revert("lane", "small-a", "small-b"))?;
    timed("vdi revert", || smctl.vdi_revert("lane", "small-a", "before"))?;
    smctl.vdi_attach("lane", "small-a", false)?;
    check("reverted", read(small_a, 4096, 12)? == b"written to a")?;
    check(
        "and the size with it",
        output("blockdev", &["--getsize64", &small_a.to_string_lossy()])?.trim() == "1073741824",
    )?;

    let create = VdiCreate { name: "empty".into(), size: 64 * MIB };
    record(timed("vdi create", || smctl.vdi_create("lane", &create))?);
    let empty = record(smctl.vdi_attach("lane", "empty", false)?).device.expect("a device");
    check("an empty disk reads as zeros", read(&empty, 0, 4096)? == [0; 4096])?;

    let list = timed("vdi list", || smctl.vdi_list("lane"))?;
    println!("{}", serde_json::to_string_pretty(&list)?);
    check("eight VDIs", list.len() == 8)?;
    println!("{}", serde_json::to_string(&timed("sr info", || smctl.sr_info("lane"))?)?);
    let by_path = smctl.vdi_info("lane", &small_b.to_string_lossy())?;
    check("a VDI by its device", by_path.name == "small-b")?;

    for vdi in &list {
        if vdi.attached {
            smctl.vdi_detach("lane", &vdi.uuid.to_string())?;
        }
    }
    timed("sr detach", || smctl.sr_detach("lane"))?;
    check("nothing of it is active", output("dmsetup", &["ls"])?.trim() == "No devices found")?;
    refused("a VDI of an SR that is not attached", smctl.vdi_list("lane"))?;
    timed("sr attach", || smctl.sr_attach("lane"))?;
    smctl.vdi_attach("lane", "small-b", true)?;
    check("writes are still there", read(small_b, 8192, 12)? == b"written to b")?;
    refused("another way of attaching", smctl.vdi_attach("lane", "small-b", false))?;
    smctl.vdi_detach("lane", "small-b")?;

    let request = SrDestroy { sr: "lane".into(), force: false };
    refused("destroying an SR with disks", smctl.sr_destroy(&request))?;
    for disk in list.iter().filter(|vdi| vdi.kind == "disk") {
        timed("vdi destroy", || smctl.vdi_destroy("lane", &disk.uuid.to_string()))?;
    }
    check("the pool is empty", smctl.sr_info("lane")?.pool_used == Some(0))?;
    smctl.vdi_forget("lane", "small")?;
    timed("sr destroy", || smctl.sr_destroy(&request))?;
    check("no device is left", output("dmsetup", &["ls"])?.trim() == "No devices found")?;
    check("no template is open", !output("losetup", &["--list"])?.contains(".raw"))?;
    check("the device is empty", output("wipefs", &["--no-act", device])?.is_empty())?;
    check("no link is left", !Path::new("/dev/thinorigin").join(sr.uuid.to_string()).exists())?;
    guests(device)?;
    println!("told");
    Ok(())
}

/// Runs LVM on the device alone, as its owner would.
fn lvm(device: &str, words: &[&str]) -> Result<()> {
    let settings = format!(
        "devices {{ use_devicesfile=0 hints=\"none\" global_filter=[\"a|^{device}$|\",\"r|.*|\"] \
         obtain_device_list_from_udev=0 external_device_info_source=\"none\" }} \
         activation {{ udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 }}"
    );
    let output = Command::new("lvm").args(words).args(["--config", &settings]).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("lvm {words:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// SRs in a volume group that belongs to somebody else.
fn guests(device: &str) -> Result<()> {
    lvm(device, &["vgcreate", "-q", "-y", "theirs", device])?;
    lvm(device, &["lvcreate", "-q", "-y", "-W", "n", "-L", "64M", "-n", "precious", "theirs"])?;
    lvm(device, &["lvcreate", "-q", "-y", "--type", "thin-pool", "-L", "64M", "-n", "free", "theirs"])?;
    lvm(device, &["lvcreate", "-q", "-y", "--type", "thin-pool", "-L", "64M", "-n", "used", "theirs"])?;
    lvm(device, &["lvcreate", "-q", "-y", "-V", "64M", "--thinpool", "theirs/used", "-n", "thin"])?;
    let precious = Path::new("/dev/mapper/theirs-precious");
    let bytes: Vec<u8> = (0..64 * MIB).map(|at| (at / 511) as u8).collect();
    write(precious, 0, &bytes)?;

    let mut smctl = controller(false)?;
    let introduce = |name: &str, pool_size, adopt: Option<&str>| SrIntroduce {
        name: name.into(),
        vg: "theirs".into(),
        pool_size,
        adopt_pool: adopt.map(Into::into),
        grows: false,
    };
    refused("a pool that LVM uses", smctl.sr_introduce(&introduce("x", None, Some("used"))))?;
    refused("a volume that is no pool", smctl.sr_introduce(&introduce("x", None, Some("precious"))))?;
    refused("a pool with no room", smctl.sr_introduce(&introduce("x", Some(1 << 40), None)))?;
    check("what was refused left nothing", smctl.sr_list()?.is_empty())?;
    timed("sr introduce, new pool", || smctl.sr_introduce(&introduce("one", Some(128 * MIB), None)))?;
    timed("sr introduce, adopted pool", || smctl.sr_introduce(&introduce("two", None, Some("free"))))?;
    refused("a pool that an SR has", smctl.sr_introduce(&introduce("three", None, Some("free"))))?;
    for sr in ["one", "two"] {
        smctl.vdi_create(sr, &VdiCreate { name: "disk".into(), size: 16 * MIB })?;
        let disk = record(smctl.vdi_attach(sr, "disk", false)?).device.expect("a device");
        write(&disk, 0, &[9; 4096])?;
        smctl.vdi_detach(sr, "disk")?;
        timed("sr detach", || smctl.sr_detach(sr))?;
        timed("sr attach", || smctl.sr_attach(sr))?;
    }
    for sr in ["one", "two"] {
        smctl.sr_destroy(&SrDestroy { sr: sr.into(), force: true })?;
    }
    check("the volumes of others are as they were", read(precious, 0, bytes.len())? == bytes)?;
    check("and the pool that was lent is still there", lvm(device, &["lvs", "theirs/free"]).is_ok())?;
    check(
        "and LVM's again",
        lvm(device, &["lvchange", "-a", "y", "theirs/free"]).is_ok()
            && lvm(
                device,
                &["lvcreate", "-q", "-y", "-V", "64M", "--thinpool", "theirs/free", "-n", "again"],
            )
            .is_ok(),
    )?;
    check("no SR is left", smctl.sr_list()?.is_empty())?;
    Ok(())
}
