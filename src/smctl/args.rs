//! The command line of `smctl`.

use crate::cli::args::Cache;
use crate::size::Size;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Manages storage repositories (SRs) and virtual disks (VDIs): thin clones of templates that live elsewhere.
#[derive(Debug, Parser)]
#[command(name = "smctl", version, about, propagate_version = true)]
pub(crate) struct Smctl {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Print one JSON document on stdout and nothing else
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Log more; repeat for more still (the variable THINORIGIN_LOG takes a filter as well)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Control socket of the server that serves templates; one is started where none runs
    #[arg(long, global = true, value_name = "unix:PATH", default_value = crate::daemon::ADMIN)]
    pub(crate) admin: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Storage repositories
    #[command(subcommand)]
    Sr(Sr),
    /// Virtual disks and templates
    #[command(subcommand)]
    Vdi(Vdi),
    /// List the host's disks, partitions, volume groups, logical volumes, device-mapper devices and mounted file systems
    ///
    /// What has its data on another machine is `network`, what other machines may use at the same time is `shared`;
    /// a `volume` can be given away whole, in a `pool` volumes are made. The kernel's tables are read, and LVM is asked
    /// about devices that no guest has. No device of a guest, no NBD device and no file system is opened.
    HostVolumes,
    /// Show what stands on what: disk, volume group, pool, VDI, user; image, cache, NBD device, origin, VDI
    Tree {
        /// UUID, name, volume group or path [default: all SRs]
        sr: Option<String>,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a directory
    Man {
        /// The directory; it must exist
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sr {
    /// Make an SR that owns whole devices, and attach it
    Create {
        /// What people call it
        #[arg(long)]
        name: String,
        /// Size of the thin pool at first [default: a quarter of the space]; it grows by itself
        #[arg(long, value_name = "SIZE")]
        pool_size: Option<Size>,
        /// The pool's block size, a multiple of 64K [default: the smallest that can address the devices]
        #[arg(long, value_name = "SIZE")]
        chunk: Option<Size>,
        /// Devices to own; anything on them is lost, so they must be empty
        #[arg(required = true)]
        devices: Vec<PathBuf>,
        #[command(flatten)]
        change: Change,
    },
    /// Make an SR in a volume group that has other uses, and attach it; other volumes are left alone
    #[command(group(clap::ArgGroup::new("pool").required(true).args(["pool_size", "adopt_pool"])))]
    Introduce {
        /// What people call it
        #[arg(long)]
        name: String,
        /// Size of the thin pool to make
        #[arg(long, value_name = "SIZE")]
        pool_size: Option<Size>,
        /// Use this empty thin pool of the volume group instead
        #[arg(long, value_name = "LV")]
        adopt_pool: Option<String>,
        /// Let the pool grow by itself into what the volume group has free
        #[arg(long)]
        grow: bool,
        /// The volume group
        vg: String,
        #[command(flatten)]
        change: Change,
    },
    /// Tell what SRs are on a device or in a volume group
    Probe {
        /// A device, or the name of a volume group
        #[arg(value_name = "DEVICE|VG")]
        target: String,
    },
    /// List this host's SRs
    ///
    /// An SR is attached, detached, incomplete (its making or its destruction was cut short) or unreadable: attached, with
    /// records or a pool that cannot be read. Why that is so is said on stderr, and with --json in the field 'error'.
    List,
    /// Describe an SR
    ///
    /// 'smctl sr list --help' says what its states are. Of one that is unreadable the field 'error' says why.
    Info {
        /// UUID, name, volume group or path
        sr: String,
    },
    /// Activate an SR
    Attach {
        /// UUID, name, volume group or path
        sr: String,
        #[command(flatten)]
        change: Change,
    },
    /// Deactivate an SR; its VDIs must be detached
    Detach {
        /// UUID, name, volume group or path
        sr: String,
        #[command(flatten)]
        change: Change,
    },
    /// Stop using an SR on this host; nothing on it changes, and `attach` finds it again
    Forget {
        /// UUID, name, volume group or path
        sr: String,
        #[command(flatten)]
        change: Change,
    },
    /// Finish or undo what a crash cut short, and let go of what nobody needs
    Recover {
        /// UUID, name, volume group or path
        sr: String,
        #[command(flatten)]
        change: Change,
    },
    /// Write an SR's records as text, to be kept elsewhere; no data of its VDIs and no secrets are in it
    Dump {
        /// UUID, name or volume group
        sr: String,
        /// The file, which is replaced [default: stdout]
        file: Option<PathBuf>,
    },
    /// Write the records of a dump onto an SR whose volume of records is lost or damaged, and attach it
    ///
    /// Nothing in the pool is touched. Refused where there are records that can be read, and where the pool does not have
    /// the thin devices that the dump speaks of.
    Restore {
        /// The dump; - is stdin
        file: PathBuf,
        /// The location of a template, whole, where the dump leaves out the secret in it (may be repeated)
        #[arg(long = "location", value_name = "TEMPLATE=LOCATION")]
        locations: Vec<String>,
        /// Go on although the pool has thin devices that the dump does not know; they stay in the pool
        #[arg(long)]
        leave_unknown: bool,
        #[command(flatten)]
        change: Change,
    },
    /// Grow an SR's thin pool, or say whether it grows by itself
    ///
    /// Growing suspends the pool, and with it every VDI for as long as reads that are under way take. So it is refused, with
    /// the template named, while a template under a VDI does not answer. A pool cannot shrink.
    Grow {
        /// UUID, name or volume group
        sr: String,
        /// The pool's new size [default: grown if four fifths are in use, so that three fifths are]
        #[arg(long, value_name = "SIZE")]
        to: Option<Size>,
        /// Whether the pool grows by itself from now on
        #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
        automatically: Option<bool>,
        #[command(flatten)]
        change: Change,
    },
    /// Grow the thin pools of attached SRs when they have little left, for as long as this runs
    ///
    /// What it does and what it cannot do is told on stderr, once. It may be killed at any time.
    Watch {
        /// Look once and end
        #[arg(long)]
        once: bool,
        /// Seconds between looks
        #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
        interval: u64,
        /// Print what would be done now, and do nothing; needs --once
        #[arg(long, requires = "once")]
        dry_run: bool,
    },
    /// Destroy an SR; its VDIs must be destroyed first
    Destroy {
        /// UUID, name, volume group or path
        sr: String,
        /// Destroy the VDIs that are left as well
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        change: Change,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Vdi {
    /// Make an image elsewhere a template of the SR
    Introduce {
        /// The SR: UUID, name, volume group or path
        sr: String,
        /// /path, http:// or other location of the image
        location: String,
        /// What people call it [default: the image's file name]
        #[arg(long)]
        name: Option<String>,
        /// For how long reads of the template wait for an image server that is away before they end in EIO [default: the
        /// server's, which is 25]
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
        patience: Option<u64>,
        #[command(flatten)]
        change: Change,
    },
    /// Forget a template that nothing descends from
    Forget {
        /// The SR: UUID, name, volume group or path
        sr: String,
        /// The template
        template: String,
        #[command(flatten)]
        change: Change,
    },
    /// Make an empty disk
    Create {
        /// The SR: UUID, name, volume group or path
        sr: String,
        /// What people call it
        #[arg(long)]
        name: String,
        /// Its size
        #[arg(long)]
        size: Size,
        /// Allocate all of its space now and zero it, which takes time; an interrupt leaves nothing
        ///
        /// Such a disk never runs out of space and needs no thin pool, but has no snapshots and no clones. Other commands
        /// can use the SR meanwhile.
        #[arg(long)]
        preallocate: bool,
        #[command(flatten)]
        change: Change,
    },
    /// Make a writable copy of a template or disk; nothing is copied
    Clone(Copy),
    /// Make a read-only copy of a disk as it is now; nothing is copied
    Snapshot(Copy),
    /// Make a disk what it was when a snapshot was made of it
    Revert {
        /// The SR: UUID, name, volume group or path
        sr: String,
        /// The disk, detached
        vdi: String,
        /// The snapshot
        snapshot: String,
        #[command(flatten)]
        change: Change,
    },
    /// Make a disk larger; what is added reads as zeros
    ///
    /// A preallocated disk is zeroed first where it grows, which takes time; an interrupt leaves it as it was.
    Resize {
        /// The SR: UUID, name, volume group or path
        sr: String,
        /// The disk
        vdi: String,
        /// Its new size
        size: Size,
        #[command(flatten)]
        change: Change,
    },
    /// Give a VDI another name
    Rename {
        /// The SR: UUID, name, volume group or path
        sr: String,
        /// The VDI: UUID, name or path, or a template's location
        vdi: String,
        /// The new name
        name: String,
        #[command(flatten)]
        change: Change,
    },
    /// Make a VDI a block device, and print the device
    Attach {
        /// The SR: UUID, name, volume group or path
        sr: String,
        /// The VDI: UUID, name or path, or a template's location
        vdi: String,
        /// Make the device read-only
        #[arg(long)]
        read_only: bool,
        #[command(flatten)]
        cache: Cache,
        #[command(flatten)]
        change: Change,
    },
    /// Take a VDI's block device away
    Detach {
        /// The SR: UUID, name, volume group or path
        sr: String,
        /// The VDI: UUID, name or path, or a template's location
        vdi: String,
        #[command(flatten)]
        change: Change,
    },
    /// Destroy a VDI; those cloned from it live on
    Destroy {
        /// The SR: UUID, name, volume group or path
        sr: String,
        /// The VDI: UUID, name or path, or a template's location
        vdi: String,
        #[command(flatten)]
        change: Change,
    },
    /// Tell what ranges of a VDI hold, and which layer decides: the disk, its template, or none
    Map {
        /// The SR
        sr: String,
        /// The VDI
        vdi: String,
        #[command(flatten)]
        cache: Cache,
    },
    /// Tell in which ranges two VDIs may differ, by blocks of the pool
    Diff {
        /// The SR
        sr: String,
        /// A VDI
        #[arg(value_name = "VDI_A")]
        a: String,
        /// Another one that shows the same template, as a snapshot of the first
        #[arg(value_name = "VDI_B")]
        b: String,
    },
    /// Copy a template that is all in the cache into the SR: its server is not needed for it any more
    ///
    /// VDIs that descend from it read the copy from then on, those that are in use too. The copy takes as much of the
    /// volume group as the template has data, and is read back before it is used. An interrupt leaves nothing of it.
    Localise {
        /// Go back: read the template from its location again, and remove the copy, also where it is lost
        #[arg(long)]
        undo: bool,
        /// The SR
        sr: String,
        /// The template
        template: String,
        #[command(flatten)]
        cache: Cache,
        #[command(flatten)]
        change: Change,
    },
    /// Copy what a disk still reads from its template into the disk, which does without the template afterwards
    ///
    /// The disk may be in use; whoever uses it waits for moments of some 50 ms. Its snapshots and clones keep their
    /// template. An interrupt leaves what was copied, and flattening again goes on from there.
    Flatten {
        /// The SR
        sr: String,
        /// The disk
        vdi: String,
        #[command(flatten)]
        cache: Cache,
        #[command(flatten)]
        change: Change,
    },
    /// List the SR's templates and disks
    List {
        /// The SR: UUID, name, volume group or path
        sr: String,
    },
    /// Describe a VDI
    Info {
        /// The SR: UUID, name, volume group or path
        sr: String,
        /// The VDI: UUID, name or path, or a template's location
        vdi: String,
    },
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("say yes or no".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// The SR: UUID, name, volume group or path
    pub(crate) sr: String,
    /// The template or disk: UUID, name or path, or a template's location
    pub(crate) vdi: String,
    /// What people call the new VDI
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Size of the new VDI, not below the old one's [default: the same]
    #[arg(long)]
    pub(crate) size: Option<Size>,
    #[command(flatten)]
    pub(crate) change: Change,
}

/// Options of everything that changes state.
#[derive(Debug, Args)]
pub(crate) struct Change {
    /// Print the steps and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}
