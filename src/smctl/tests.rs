//! Every verb as it is typed, on a simulated host: what it prints, how it ends, and what it leaves alone.
//!
//! Tables: what changes something, what only looks, what is refused, and what fails or makes no sense.

mod local;

use super::*;
use crate::output::listened;
use serde_json::Value;
use sr::sim::{Event, Rig};
use std::collections::BTreeSet;

/// No server is there: the templates of a simulated host need none.
const ADMIN: &str = "unix:/nonexistent/thinorigin/admin.sock";

/// A host, a directory for files, and where its server is asked.
struct Stage {
    rig: Rig,
    dir: tempfile::TempDir,
    admin: String,
}

/// How a command ended.
struct Ran {
    code: u8,
    stdout: String,
    stderr: String,
}

impl Stage {
    /// A host with an empty disk.
    fn bare() -> Self {
        Self { rig: Rig::new(), dir: tempfile::tempdir().unwrap(), admin: ADMIN.to_owned() }
    }

    /// With an SR: templates `t` and `u`, of which `t` is in use; a clone `a` of `t`, attached, its snapshot `s` and a
    /// clone `b` of that; an empty disk `e`; and a preallocated disk `p`.
    fn furnished() -> Self {
        Self::bare()
            .then("sr create --name sr /dev/sda")
            .then("vdi introduce sr /images/7 --name t")
            .then("vdi introduce sr /images/8 --name u")
            .then("vdi clone sr t --name a")
            .then("vdi attach sr a")
            .then("vdi snapshot sr a --name s")
            .then("vdi clone sr s --name b")
            .then("vdi create sr --name e --size 256K")
            .then("vdi create sr --name p --size 64K --preallocate")
    }

    /// The same with nothing attached, and the SR neither.
    fn at_rest() -> Self {
        Self::furnished().then("vdi detach sr a").then("sr detach sr")
    }

    /// With an SR whose records are in a dump, and lost.
    fn without_records() -> Self {
        Self::furnished().then("sr dump sr {dir}/dump").when(Event::RecordsAreLost)
    }

    /// With a group of somebody's, in which he has a plain volume.
    fn shared_group() -> Self {
        let stage = Self::bare().when(Event::GroupAppears("vg"));
        stage.when(Event::VolumeAppears("precious".into(), "linear"))
    }

    fn then(self, line: &str) -> Self {
        let ran = self.smctl(line);
        assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
        self
    }

    fn when(self, event: Event) -> Self {
        self.rig.happens(event);
        self
    }

    /// Runs `smctl` with the words of a line.
    fn smctl(&self, line: &str) -> Ran {
        let line = line.replace("{dir}", self.dir.path().to_str().unwrap());
        let words = ["smctl", "--admin", &self.admin].into_iter().chain(line.split_whitespace());
        let parsed = match Smctl::try_parse_from(words) {
            Ok(parsed) => parsed,
            Err(e) => return Ran { code: e.exit_code() as u8, stdout: String::new(), stderr: e.to_string() },
        };
        let open = |options: &sr::Options, _: Server| Ok(self.rig.process(options.dry_run));
        let host = Host { global: &parsed.global, open: &open };
        let (outcome, said) = listened::to(|| run(parsed.command, &host));
        let (code, error) = match outcome {
            Ok(()) => (0, String::new()),
            Err(e) => (e.exit_code(), format!("{e}\n")),
        };
        Ran { code, stdout: said.stdout, stderr: said.stderr + &error }
    }

    /// Runs a line that must not change anything.
    fn look(&self, line: &str) -> Ran {
        let before = self.rig.world();
        let ran = self.smctl(line);
        assert!(self.rig.world() == before, "{line} changes something");
        ran
    }
}

fn document(line: &str, text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{line}: no JSON document: {e}: {text}"))
}

fn assert_has(line: &str, text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{line}: {word:?} is missing in: {text}");
    }
}

/// What changes something: the line, words of its steps, and where in its JSON there is something afterwards.
type Changes = (fn() -> Stage, &'static str, &'static [&'static str], &'static str);

const CHANGES: &[Changes] = &[
    (Stage::bare, "sr create --name sr /dev/sda", &["volume group sr of /dev/sda", "empty records"], "/uuid"),
    (
        Stage::bare,
        "sr create --name sr --pool-size 1G --chunk 128K /dev/sda",
        &["of 1 GiB", "blocks of 128 KiB"],
        "/uuid",
    ),
    (Stage::shared_group, "sr introduce --name sr --pool-size 64M vg", &["thin pool vg/"], "/uuid"),
    (
        || Stage::shared_group().when(Event::VolumeAppears("theirs".into(), "thin-pool")),
        "sr introduce --name sr --adopt-pool theirs --grow vg",
        &["mark the thin pool vg/theirs"],
        "/uuid",
    ),
    (Stage::at_rest, "sr attach sr", &["activate sr/", "remember"], "/record/uuid"),
    (
        || Stage::furnished().then("vdi detach sr a"),
        "sr detach sr",
        &["deactivate", "forget"],
        "/record/uuid",
    ),
    (
        || Stage::furnished().then("vdi detach sr a"),
        "sr forget sr",
        &["deactivate", "forget"],
        "/record/uuid",
    ),
    (Stage::at_rest, "sr recover sr", &["activate"], "/record/uuid"),
    (Stage::without_records, "sr restore {dir}/dump", &["write the records of 7 VDIs"], "/record/uuid"),
    (Stage::furnished, "sr grow sr --to 3G", &["grow the thin pool", "3 GiB"], "/record/pool_size"),
    (Stage::furnished, "sr grow sr --automatically no", &["does not grow by itself"], "/record/pool_grows"),
    (|| Stage::furnished().when(Event::PoolFills), "sr grow sr", &["grow the thin pool"], "/record/uuid"),
    (
        || Stage::bare().then("sr create --name sr /dev/sda"),
        "sr destroy sr",
        &["remove the volume group sr"],
        "/steps/0",
    ),
    (|| Stage::furnished().then("vdi detach sr a"), "sr destroy sr --force", &["what is in it"], "/steps/0"),
    (Stage::furnished, "vdi introduce sr /images/9 --name new", &["record VDI 'new'"], "/record/location"),
    (Stage::furnished, "vdi introduce sr /images/9 --patience 60", &["record VDI"], "/record/patience"),
    (Stage::furnished, "vdi forget sr u", &["remove the record of VDI 'u'"], "/steps/0"),
    (Stage::furnished, "vdi create sr --name n --size 1M", &["make thin device", "'n'"], "/uuid"),
    (
        Stage::furnished,
        "vdi create sr --name n --size 64K --preallocate",
        &["make the volume", "zero 128 KiB", "record VDI 'n'"],
        "/record/preallocated",
    ),
    (Stage::furnished, "vdi clone sr t", &["make thin device", "record VDI 't clone'"], "/record/origin"),
    (Stage::furnished, "vdi clone sr b --name c --size 1M", &["as a snapshot of"], "/record/parent"),
    (Stage::furnished, "vdi snapshot sr a --name n", &["as a snapshot of", "'n'"], "/record/snapshot_of"),
    (
        || Stage::furnished().then("vdi detach sr a"),
        "vdi revert sr a s",
        &["as a snapshot of", "delete thin device"],
        "/record/uuid",
    ),
    (Stage::furnished, "vdi resize sr a 1M", &["record VDI 'a'", "map"], "/record/virtual_size"),
    (Stage::furnished, "vdi resize sr p 1M", &["extend the volume", "zero", "'p'"], "/record/virtual_size"),
    (Stage::furnished, "vdi rename sr b bb", &["record VDI 'bb'"], "/record/name"),
    (Stage::furnished, "vdi attach sr b", &["map the device of VDI 'b'", "link"], "/record/device"),
    (Stage::furnished, "vdi attach sr u --read-only", &["open template 'u'", "read-only"], "/record/device"),
    (Stage::furnished, "vdi detach sr a", &["remove the device of VDI 'a'", "close"], "/record/uuid"),
    (Stage::furnished, "vdi destroy sr b", &["delete thin device"], "/steps/0"),
    (Stage::furnished, "vdi destroy sr p", &["remove the record of VDI 'p'", "what is in it"], "/steps/0"),
    (Stage::furnished, "vdi localise sr t", &["copy template 't'"], "/record/local_copy"),
    (
        || Stage::furnished().then("vdi localise sr t"),
        "vdi localise --undo sr t",
        &["what is in it"],
        "/record/location",
    ),
    (Stage::furnished, "vdi flatten sr a", &["copy what VDI 'a'"], "/record/device"),
];

#[test]
fn a_dry_run_tells_the_steps_and_changes_nothing() {
    for (stage, line, words, _) in CHANGES {
        let stage = stage();
        let dry = format!("{line} --dry-run");
        let ran = stage.look(&dry);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{dry}");
        assert_has(&dry, &ran.stdout, words);
        let json = format!("{dry} --json");
        let ran = stage.look(&json);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{json}");
        let report = document(&json, &ran.stdout);
        let steps = report["steps"].as_array().unwrap();
        assert!(!steps.is_empty() && steps.iter().all(|step| step["state"] == "planned"), "{json}: {report}");
    }
}

#[test]
fn a_change_prints_one_document_and_does_what_its_dry_run_told() {
    for (stage, line, words, pointer) in CHANGES {
        let stage = stage();
        let before = stage.rig.world();
        let json = format!("{line} --json");
        let ran = stage.smctl(&json);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{json}");
        let report = document(&json, &ran.stdout);
        assert!(report.pointer(pointer).is_some_and(|it| !it.is_null()), "{json}: no {pointer}: {report}");
        assert_has(&json, &report["steps"].to_string(), words);
        assert!(report["steps"].as_array().unwrap().iter().any(|step| step["state"] == "changed"), "{json}");
        assert!(stage.rig.world() != before, "{json} changes nothing");
    }
}

/// What a change prints for people: a line that begins so, or nothing.
type Prints = (fn() -> Stage, &'static str, &'static str);

const PRINTS: &[Prints] = &[
    (Stage::furnished, "vdi attach sr b", "/dev/thinorigin/"),
    (Stage::furnished, "vdi rename sr b bb", ""),
    (Stage::furnished, "vdi detach sr a", ""),
    (Stage::furnished, "vdi destroy sr b", ""),
    (Stage::at_rest, "sr attach sr", ""),
];

#[test]
fn a_change_prints_what_is_needed_next_or_nothing() {
    for (stage, line, begins) in PRINTS {
        let ran = stage().smctl(line);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{line}");
        assert!(ran.stdout.starts_with(begins), "{line}: {}", ran.stdout);
        assert_eq!(ran.stdout.lines().count(), usize::from(!begins.is_empty()), "{line}: {}", ran.stdout);
    }
    let makes = [
        (Stage::bare as fn() -> Stage, "sr create --name sr /dev/sda"),
        (Stage::furnished, "vdi introduce sr /images/9"),
        (Stage::furnished, "vdi create sr --name n --size 1M"),
        (Stage::furnished, "vdi clone sr t"),
        (Stage::furnished, "vdi snapshot sr a"),
    ];
    for (stage, line) in makes {
        let ran = stage().smctl(line);
        assert!(ran.stdout.trim_end().parse::<uuid::Uuid>().is_ok(), "{line} prints a UUID: {}", ran.stdout);
    }
}

/// What only looks: the line, where in its JSON there is something, and words that people are shown.
type Looks = (fn() -> Stage, &'static str, &'static [&'static str], &'static [&'static str]);

const LOOKS: &[Looks] = &[
    (Stage::furnished, "sr list", &["/0/uuid", "/0/state", "/0/vg"], &["uuid", "attached"]),
    (Stage::bare, "sr list", &[], &["uuid"]),
    (Stage::at_rest, "sr info sr", &["/uuid", "/vg_size", "/capacity"], &["detached"]),
    (
        Stage::furnished,
        "sr info sr",
        &[
            "/disks",
            "/virtual_allocation",
            "/physical_allocation",
            "/capacity",
            "/origins/0/location",
            "/origins/0/device",
            "/origins/0/users",
            "/origins/0/answers",
            "/origins/0/local_percent",
        ],
        &["pool_used", "template", "answers", "yes", "100 %"],
    ),
    (
        || Stage::furnished().when(Event::TemplatesHang).when(Event::CacheIsHalved),
        "sr info sr",
        &["/origins/0/silent_since", "/warnings/0"],
        &["not since 2001-09-09T01:46:40Z", "50 %", "warning: template 't'"],
    ),
    (
        || Stage::furnished().when(Event::VolumeStops("-pool")),
        "sr info sr",
        &["/warnings/0"],
        &["detached", "warning: SR 'sr' is not attached", "-pool is not active"],
    ),
    (
        || Stage::furnished().when(Event::RecordsAreOfALaterVersion),
        "sr info sr",
        &["/error", "/vg_size"],
        &["unreadable", "the records have format version 9"],
    ),
    (
        || Stage::furnished().when(Event::RecordsAreOfALaterVersion),
        "tree",
        &["/0/error"],
        &["unreadable: the records have format version 9"],
    ),
    (Stage::furnished, "sr probe sr", &["/0/uuid"], &["attached"]),
    (Stage::furnished, "sr probe /dev/sda", &["/0/uuid"], &["attached"]),
    (Stage::furnished, "sr probe other", &[], &["uuid"]),
    (Stage::furnished, "sr dump sr", &["/thinorigin_sr_dump", "/vdis/6"], &["thinorigin_sr_dump"]),
    (Stage::furnished, "sr dump sr {dir}/dump", &["/file", "/bytes"], &[]),
    (Stage::furnished, "sr watch --once", &["/0/uuid"], &[]),
    (Stage::furnished, "sr watch --once --dry-run", &["/0/uuid"], &[]),
    (
        Stage::furnished,
        "vdi list sr",
        &[
            "/6/uuid",
            "/0/name",
            "/0/type",
            "/0/read_only",
            "/0/virtual_size",
            "/0/physical_utilisation",
            "/0/attached",
            "/0/preallocated",
        ],
        &["template", "disk", "location or device"],
    ),
    (Stage::furnished, "vdi info sr a", &["/device", "/origin", "/from_template"], &["virtual_size", "a"]),
    (Stage::furnished, "vdi info sr p", &["/preallocated", "/capacity"], &["preallocated"]),
    (Stage::furnished, "vdi info sr /images/7", &["/location"], &["template"]),
    (Stage::furnished, "vdi map sr a", &["/0/start", "/0/length", "/0/depth", "/0/data"], &["content"]),
    (Stage::furnished, "vdi map sr t", &["/0/start"], &["0x20000"]),
    (Stage::furnished, "vdi diff sr a s", &[], &["start"]),
    (Stage::furnished, "host-volumes", &["/0/id", "/0/kind"], &["volume group", "sr"]),
    (Stage::furnished, "tree", &["/0/uuid", "/0/templates"], &["template 't'"]),
    (Stage::at_rest, "tree sr", &["/0/uuid"], &["detached"]),
    (Stage::bare, "completions bash", &[], &["smctl"]),
    (Stage::bare, "man {dir}", &[], &[]),
];

#[test]
fn a_look_prints_one_document_or_words_and_changes_nothing() {
    for (stage, line, pointers, words) in LOOKS {
        let stage = stage();
        let ran = stage.look(line);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{line}");
        assert_has(line, &ran.stdout, words);
        if line.starts_with("completions") || line.starts_with("man") {
            continue;
        }
        let json = format!("{line} --json");
        let ran = stage.look(&json);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{json}");
        let shown = document(&json, &ran.stdout);
        for pointer in *pointers {
            assert!(shown.pointer(pointer).is_some_and(|it| !it.is_null()), "{json}: no {pointer}: {shown}");
        }
    }
}

#[test]
fn a_list_says_on_stderr_why_an_sr_is_unreadable_and_in_its_document() {
    let stage = Stage::furnished().when(Event::RecordsAreOfALaterVersion);
    let ran = stage.look("sr list");
    assert_eq!(ran.code, 0);
    assert_has("sr list", &ran.stdout, &["unreadable"]);
    assert_has("sr list", &ran.stderr, &["smctl: warning: SR 'sr' is unreadable", "format version 9"]);
    let ran = stage.look("sr list --json");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let shown = document("sr list", &ran.stdout);
    assert_eq!(shown[0]["state"], "unreadable");
    assert_eq!(shown[0]["error"], "the records have format version 9");
}

/// What is refused (exit 3), and words of why.
type Refused = (fn() -> Stage, &'static str, &'static [&'static str]);

const REFUSALS: &[Refused] = &[
    // Making and taking apart SRs.
    (Stage::bare, "sr create --name a/b /dev/sda", &["cannot be the name"]),
    (Stage::bare, "sr create --name a-name-that-is-longer-than-LVM-can-take /dev/sda", &["too long a name"]),
    (Stage::furnished, "sr create --name sr /dev/sda", &["volume group sr exists"]),
    (|| Stage::bare().when(Event::DiskIsUsed), "sr create --name sr /dev/sda", &["mounted at /srv"]),
    (|| Stage::bare().when(Event::DiskIsFormatted), "sr create --name sr /dev/sda", &["ext4", "wipefs"]),
    (Stage::bare, "sr create --name sr --chunk 96K /dev/sda", &["multiple of 64 KiB"]),
    (Stage::bare, "sr create --name sr --pool-size 1T /dev/sda", &["no room for a pool of 1 TiB"]),
    (Stage::furnished, "sr introduce --name sr --pool-size 64M sr", &["this name or this pool"]),
    (Stage::shared_group, "sr introduce --name sr --adopt-pool precious vg", &["not a thin pool", "linear"]),
    (Stage::shared_group, "sr introduce --name sr --pool-size 1T vg", &["no room for a pool"]),
    (Stage::furnished, "sr detach sr", &["are attached", "detach the VDIs first"]),
    (Stage::furnished, "sr forget sr", &["are attached"]),
    (|| Stage::furnished().then("vdi detach sr a").when(Event::WorkGoesOn("p")), "sr detach sr", &["zeroed"]),
    (Stage::furnished, "sr destroy sr", &["still holds 5 disks", "force"]),
    (Stage::at_rest, "sr destroy sr", &["not attached", "attach it first, or force"]),
    (Stage::furnished, "sr destroy sr --force", &["are attached"]),
    (
        || {
            let stage = Stage::furnished().then("vdi detach sr a");
            stage.when(Event::VolumeAppears("precious".into(), "linear"))
        },
        "sr destroy sr --force",
        &["volumes that are not the SR's", "precious"],
    ),
    (Stage::furnished, "sr grow sr --to 64K", &["cannot shrink"]),
    (Stage::furnished, "sr grow sr --to 1T", &["cannot grow", "free"]),
    (
        || Stage::furnished().when(Event::PoolFills).when(Event::TemplatesHang),
        "sr grow sr",
        &["template 't'", "does not answer"],
    ),
    // What needs an attached SR.
    (Stage::at_rest, "sr dump sr", &["not attached", "smctl sr attach"]),
    (Stage::at_rest, "sr grow sr", &["not attached"]),
    (Stage::at_rest, "vdi list sr", &["not attached", "smctl sr attach"]),
    (Stage::at_rest, "vdi info sr a", &["not attached"]),
    (Stage::at_rest, "vdi map sr a", &["not attached"]),
    (Stage::at_rest, "vdi diff sr a s", &["not attached"]),
    (Stage::at_rest, "vdi introduce sr /images/9", &["not attached"]),
    (Stage::at_rest, "vdi forget sr u", &["not attached"]),
    (Stage::at_rest, "vdi create sr --name n --size 1M", &["not attached"]),
    (Stage::at_rest, "vdi create sr --name n --size 1M --preallocate", &["not attached"]),
    (Stage::at_rest, "vdi clone sr t", &["not attached"]),
    (Stage::at_rest, "vdi snapshot sr a", &["not attached"]),
    (Stage::at_rest, "vdi revert sr a s", &["not attached"]),
    (Stage::at_rest, "vdi resize sr a 1M", &["not attached"]),
    (Stage::at_rest, "vdi rename sr a b", &["not attached"]),
    (Stage::at_rest, "vdi attach sr a", &["not attached"]),
    (Stage::at_rest, "vdi detach sr a", &["not attached"]),
    (Stage::at_rest, "vdi destroy sr a", &["not attached"]),
    (Stage::at_rest, "vdi localise sr t", &["not attached"]),
    (Stage::at_rest, "vdi flatten sr a", &["not attached"]),
    // VDIs.
    (Stage::furnished, "vdi forget sr a", &["is a disk", "smctl vdi destroy"]),
    (Stage::furnished, "vdi forget sr t", &["3 VDIs still show", "destroy what was cloned"]),
    (Stage::furnished, "vdi destroy sr t", &["3 VDIs still show"]),
    (Stage::furnished, "vdi destroy sr a", &["is attached"]),
    (|| Stage::furnished().when(Event::GuestsRun), "vdi destroy sr a", &["a guest has it open"]),
    (|| Stage::furnished().when(Event::GuestsRun), "vdi detach sr a", &["is in use", "a guest has it open"]),
    (|| Stage::furnished().when(Event::WorkGoesOn("p")), "vdi destroy sr p", &["already"]),
    (Stage::furnished, "vdi create sr --name n --size 0", &["more than nothing"]),
    (Stage::furnished, "vdi create sr --name n --size 2048T", &["at most 1 PiB"]),
    (Stage::furnished, "vdi create sr --name n --size 0 --preallocate", &["more than nothing"]),
    (Stage::furnished, "vdi create sr --name n --size 1T --preallocate", &["free", "needs", "cannot shrink"]),
    (Stage::furnished, "vdi clone sr t --size 64K", &["less than the 128 KiB of 't'"]),
    (Stage::furnished, "vdi clone sr p", &["preallocated"]),
    (Stage::furnished, "vdi snapshot sr p", &["preallocated"]),
    (Stage::furnished, "vdi snapshot sr t", &["is a template"]),
    (Stage::furnished, "vdi revert sr a s", &["is attached"]),
    (Stage::furnished, "vdi revert sr b s", &["no snapshot of VDI 'b'"]),
    (Stage::furnished, "vdi revert sr p s", &["only a thin VDI"]),
    (Stage::furnished, "vdi resize sr a 64K", &["cannot shrink to 64 KiB"]),
    (Stage::furnished, "vdi resize sr t 1M", &["only disks can grow"]),
    (Stage::furnished, "vdi resize sr s 1M", &["only disks can grow"]),
    (Stage::furnished, "vdi resize sr p 1T", &["free", "needs"]),
    (|| Stage::furnished().when(Event::WorkGoesOn("p")), "vdi resize sr p 1M", &["being made larger"]),
    (Stage::furnished, "vdi attach sr a --read-only", &["attached read-write already"]),
    (Stage::furnished, "vdi diff sr a p", &["'p' is preallocated"]),
    (Stage::furnished, "vdi diff sr a e", &["not the same template"]),
    (Stage::furnished, "vdi localise sr a", &["is a disk", "smctl vdi flatten"]),
    (Stage::furnished, "vdi localise --undo sr a", &["is a disk"]),
    (
        || Stage::furnished().when(Event::CacheIsHalved),
        "vdi localise sr t",
        &["50 % of template 't'", "warm"],
    ),
    (|| Stage::furnished().when(Event::WorkGoesOn("t")), "vdi localise sr t", &["being copied already"]),
    (|| Stage::furnished().when(Event::WorkGoesOn("t")), "vdi localise --undo sr t", &["already"]),
    (Stage::furnished, "vdi flatten sr t", &["is a template", "smctl vdi localise"]),
    (|| Stage::furnished().when(Event::WorkGoesOn("b")), "vdi flatten sr b", &["being flattened already"]),
    (
        || Stage::furnished().then("vdi clone sr t --name twin").then("vdi clone sr t --name twin"),
        "vdi attach sr twin",
        &["'twin' may mean 2", "by its UUID"],
    ),
    // Restoring.
    (
        || Stage::furnished().then("sr dump sr {dir}/dump").then("vdi create sr --name n --size 1M"),
        "sr restore {dir}/dump",
        &["can be read", "nothing is restored over them"],
    ),
    (
        || {
            let stage = Stage::furnished().then("sr dump sr {dir}/dump").then("vdi destroy sr b");
            stage.when(Event::RecordsAreLost)
        },
        "sr restore {dir}/dump",
        &["lacks 1 of the dump's 4 thin devices", "'b'"],
    ),
    (
        || {
            let stage = Stage::furnished().then("sr dump sr {dir}/dump");
            stage.then("vdi create sr --name n --size 1M").when(Event::RecordsAreLost)
        },
        "sr restore {dir}/dump",
        &["does not know", "--leave-unknown"],
    ),
    (
        || Stage::without_records().when(Event::VolumeGoes("-thick-")),
        "sr restore {dir}/dump",
        &["lacks smctl-", "'p'", "another time"],
    ),
];

/// Lines of which a dry run cannot see that they will be refused: that takes an open template.
const SEEN_LATE: &[&str] = &["vdi localise sr t"];

#[test]
fn what_is_refused_says_why_and_changes_nothing() {
    for (stage, line, words) in REFUSALS {
        let dry = format!("{line} --dry-run");
        let has_dry_run =
            !SEEN_LATE.contains(line) && leaf(line).get_arguments().any(|it| it.get_id() == "dry_run");
        for line in [Some(*line), has_dry_run.then_some(dry.as_str())].into_iter().flatten() {
            let stage = stage();
            let ran = stage.look(line);
            assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{line}: {}", ran.stderr);
            assert_eq!(ran.stderr.lines().count(), 1, "one sentence: {}", ran.stderr);
            assert_has(line, &ran.stderr, words);
        }
    }
}

/// What fails (exit 1) or makes no sense (exit 2), and words of why.
type Fails = (fn() -> Stage, &'static str, u8, &'static [&'static str]);

const FAILURES: &[Fails] = &[
    (Stage::bare, "sr info sr", 1, &["there is no SR 'sr'"]),
    (Stage::furnished, "sr info /dev/sdb", 1, &["there is no SR"]),
    (Stage::furnished, "vdi list other", 1, &["there is no SR 'other'"]),
    (Stage::furnished, "vdi info sr nothing", 1, &["SR 'sr' has no VDI 'nothing'"]),
    (Stage::furnished, "vdi revert sr a nothing", 1, &["no VDI 'nothing'"]),
    (|| Stage::furnished().when(Event::ServerLeaves), "vdi attach sr u", 1, &["'u'", "the server is away"]),
    (Stage::shared_group, "sr introduce --name sr --pool-size 64M other", 1, &["no volume group other"]),
    (Stage::shared_group, "sr introduce --name sr --adopt-pool none vg", 1, &["no volume none"]),
    (Stage::furnished, "sr restore {dir}/nothing", 1, &["cannot read", "nothing"]),
    (|| Stage::furnished().when(Event::RecordsAreLost), "sr attach sr", 1, &["does not hold the records"]),
    (Stage::bare, "", 2, &["Usage"]),
    (Stage::bare, "sr nothing", 2, &["nothing"]),
    (Stage::bare, "sr create --name sr", 2, &["DEVICES"]),
    (Stage::bare, "sr introduce --name sr vg", 2, &["--pool-size"]),
    (Stage::bare, "sr introduce --name sr --pool-size 1G --adopt-pool p vg", 2, &["cannot be used with"]),
    (Stage::bare, "sr grow sr --automatically perhaps", 2, &["yes or no"]),
    (Stage::bare, "sr watch --json", 2, &["--once"]),
    (Stage::bare, "sr watch --interval 0", 2, &["1..=3600"]),
    (Stage::bare, "sr watch --dry-run", 2, &["--once"]),
    (Stage::bare, "vdi create sr --name n", 2, &["--size"]),
    (Stage::bare, "vdi create sr --name n --size big", 2, &["not a size"]),
    (Stage::bare, "vdi introduce sr gopher://host/image", 2, &["gopher"]),
    (Stage::bare, "vdi introduce sr http://user:word@host/image", 2, &["password"]),
    (Stage::bare, "vdi introduce sr /images/9 --patience 0", 2, &["1..=3600"]),
    (Stage::bare, "vdi map sr a --dry-run", 2, &["--dry-run"]),
    (Stage::without_records, "sr restore {dir}/dump --location 7", 2, &["equals sign"]),
    (Stage::without_records, "sr restore {dir}/dump --location a=7", 2, &["no UUID"]),
];

#[test]
fn what_fails_says_why_and_changes_nothing() {
    for (stage, line, code, words) in FAILURES {
        let ran = stage().look(line);
        assert_eq!((ran.code, ran.stdout.as_str()), (*code, ""), "{line}: {}", ran.stderr);
        assert_has(line, &ran.stderr, words);
        assert!(!ran.stderr.contains("user:word"), "{line}: {}", ran.stderr);
    }
}

/// The verb of a line.
fn leaf(line: &str) -> clap::Command {
    let mut command = Smctl::command();
    command.build();
    for word in line.split_whitespace() {
        let Some(next) = command.find_subcommand(word) else { break };
        command = next.clone();
    }
    command
}

/// The lines of every verb.
fn verbs(command: &clap::Command, before: &str, found: &mut BTreeSet<String>) {
    for command in command.get_subcommands().filter(|it| it.get_name() != "help") {
        let line = format!("{before} {}", command.get_name()).trim().to_owned();
        match command.has_subcommands() {
            true => verbs(command, &line, found),
            false => drop(found.insert(line)),
        }
    }
}

#[test]
fn no_verb_is_left_out() {
    let mut all = BTreeSet::new();
    verbs(&Smctl::command(), "", &mut all);
    assert!(all.len() > 30, "{all:?}");
    let begins = |verb: &str, line: &&str| format!("{line} ").starts_with(&format!("{verb} "));
    for verb in &all {
        // It has one document for each SR, and not one of steps.
        let changes = verb != "sr watch" && leaf(verb).get_arguments().any(|it| it.get_id() == "dry_run");
        let tried = match changes {
            true => CHANGES.iter().map(|(_, line, ..)| line).any(|line| begins(verb, line)),
            false => LOOKS.iter().map(|(_, line, ..)| line).any(|line| begins(verb, line)),
        };
        assert!(tried, "'{verb}' is in no table");
        // These take whatever there is.
        let always = ["sr list", "sr probe", "sr info", "sr attach", "sr recover", "sr watch"];
        let refused = REFUSALS.iter().any(|(_, line, _)| begins(verb, line));
        assert!(
            refused || !verb.contains(' ') || always.contains(&verb.as_str()),
            "'{verb}' is never refused"
        );
    }
}
