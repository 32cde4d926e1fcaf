//! The command line of `thinorigin`.

use crate::size::Size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Reads VM disk images in place, wherever they are, and serves them read-only by NBD.
#[derive(Debug, Parser)]
#[command(name = "thinorigin", version, about, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print one JSON document on stdout and nothing else
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Log more; repeat for more still (the variable THINORIGIN_LOG takes a filter as well)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve images by NBD
    Serve(Serve),
    /// Describe an image
    Info(OneImage),
    /// List what the virtual disk holds and which layer holds it, in the manner of `qemu-img map`
    Map(OneImage),
    /// Verify an image's structure: every table is readable and every extent lies inside its file
    Check(OneImage),
    /// Write guest bytes to stdout
    Cat(Cat),
    /// Bring an image into the cache
    Warm(Warm),
    /// List the objects of an S3 bucket below a prefix, as locations
    List(List),
    /// Look after the block cache
    Cache {
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Attach an image to this machine's kernel as a read-only NBD device, and print the device
    Attach(Attach),
    /// List the NBD devices that the server has attached: which image each shows, and what it is asked for
    Attached {
        #[command(flatten)]
        daemon: Daemon,
    },
    /// List what the server exports by name, and how much of it is local
    Exports {
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Detach an NBD device that `attach` made
    Detach(Detach),
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
pub(crate) enum CacheCommand {
    /// List what is cached: each object, and how much of it is local
    List(CacheDir),
    /// Sum up what each location takes
    Usage(CacheDir),
    /// Read all that is local and compare it with its checksums
    Verify(CacheDir),
    /// Write a disk that is all in the cache to a file, for a loop device, or to a block device; no server is asked
    Export(Export),
    /// Remove what is cached of a location; refused while a server uses the cache
    Drop {
        /// The location, as `list` shows it
        #[arg(required_unless_present = "all")]
        location: Option<String>,
        /// Remove everything
        #[arg(long, conflicts_with = "location")]
        all: bool,
        #[command(flatten)]
        dir: CacheDir,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Location of the image
    pub(crate) location: String,
    /// A file, which must not exist, or a block device, which loses what it holds
    #[arg(value_name = "FILE|DEVICE")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) reading: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct CacheDir {
    /// Directory of the block cache [default: /var/cache/thinorigin for root, $XDG_CACHE_HOME/thinorigin otherwise]
    #[arg(long = "cache", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct OneImage {
    /// /path, file://, http://, https://, s3://, nfs:// or smb:// location of the image
    pub(crate) location: String,
    #[command(flatten)]
    pub(crate) reading: Reading,
}

/// How images are opened and where their blocks are kept.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Reading")]
pub(crate) struct Reading {
    /// Read the image as this format instead of looking at its content
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Read an internal snapshot of the image instead of its active disk (qcow2)
    #[arg(long, value_name = "NAME|ID")]
    pub(crate) snapshot: Option<String>,
    /// Read this file of an archive (tar, OVA) [default: the only one that is named like a disk image]
    #[arg(long, value_name = "NAME")]
    pub(crate) member: Option<String>,
    /// Also open files that an image names if their location begins with PREFIX (may be repeated; without it only
    /// files in the image's own directory on the same server are opened)
    #[arg(long = "allow-reference", value_name = "PREFIX")]
    pub(crate) allow_reference: Vec<String>,
    /// What servers are shown: sections by location prefix, in a file that only its owner may read [default:
    /// /etc/thinorigin/credentials.toml]
    #[arg(long, value_name = "FILE")]
    pub(crate) credentials: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cache: Cache,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cache")]
pub(crate) struct Cache {
    /// Directory of the block cache [default: /var/cache/thinorigin for root, $XDG_CACHE_HOME/thinorigin otherwise]
    #[arg(long = "cache", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// How large the cache may grow
    #[arg(long = "cache-size", value_name = "SIZE", default_value = "10G")]
    pub(crate) size: Size,
    /// Keep nothing on disk
    #[arg(long, conflicts_with_all = ["dir"])]
    pub(crate) no_cache: bool,
    /// Ask the server for the version of an image, too, that the cache has all of
    #[arg(long)]
    pub(crate) revalidate: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    Raw,
    Qcow,
    Qcow2,
    Vhd,
    Vhdx,
    Vmdk,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Listen on a unix socket [default: /run/thinorigin/nbd.sock, or the sockets systemd passes]
    #[arg(long, value_name = "PATH")]
    pub(crate) unix: Vec<PathBuf>,
    /// Who may use the unix sockets, in octal [default: 0600, their owner alone]
    #[arg(long, value_name = "MODE", value_parser = octal)]
    pub(crate) unix_mode: Option<u32>,
    /// Give the unix sockets to this user, this group, or both
    #[arg(long, value_name = "[USER][:GROUP]")]
    pub(crate) unix_owner: Option<String>,
    /// Become this user once the sockets are there and certificates are read (for a server without kernel devices, which
    /// are root's alone)
    #[arg(long, value_name = "USER[:GROUP]", conflicts_with = "admin")]
    pub(crate) user: Option<String>,
    /// Listen on a TCP address, which must be a loopback address unless connections are encrypted
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) tcp: Vec<String>,
    /// Encrypt every connection, with ca-cert.pem, server-cert.pem and server-key.pem in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) tls_certificates: Option<PathBuf>,
    /// Serve only clients with a certificate that an authority in ca-cert.pem vouches for
    #[arg(long, requires = "tls_certificates")]
    pub(crate) tls_verify_peer: bool,
    /// Allow TCP addresses that others on the network can reach, though nothing is encrypted
    #[arg(long)]
    pub(crate) insecure_tcp: bool,
    /// Listen for control requests (HTTP and JSON; `attach`, `detach` and smctl use it)
    #[arg(long, value_name = "unix:PATH")]
    pub(crate) admin: Option<String>,
    /// Export also what this file names, in tables called [[export]]; SIGHUP has it read again
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Most connections at a time
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub(crate) max_connections: usize,
    /// Open each image when it is first asked for instead of at start
    #[arg(long)]
    pub(crate) lazy: bool,
    /// For how long reads wait for an image server that is away before they end in EIO [default: 25, and less where it is
    /// known to be in vain]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) patience: Option<u64>,
    /// Bring every image into the cache in the background, after what traces name
    #[arg(long, conflicts_with = "no_cache")]
    pub(crate) prefetch: bool,
    /// Fetch in the background what this trace names, a file or a location (of the first export, unless NAME says of
    /// another; may be repeated). Without it, IMAGE.trace beside an image is followed when nothing of it is cached
    #[arg(long, value_name = "[NAME=]TRACE", conflicts_with = "no_cache")]
    pub(crate) prefetch_trace: Vec<String>,
    /// Do not look for IMAGE.trace beside images
    #[arg(long)]
    pub(crate) no_published_trace: bool,
    /// Write into this file which parts of the disk are read, and when (of the first export, unless NAME says of another;
    /// may be repeated)
    #[arg(long, value_name = "[NAME=]FILE")]
    pub(crate) record_trace: Vec<String>,
    /// End when nothing is attached to the kernel any more
    #[arg(long, requires = "admin")]
    pub(crate) while_attached: bool,
    /// What to export: LOCATION, or NAME=LOCATION; the first is also the default export
    #[arg(value_name = "[NAME=]LOCATION")]
    pub(crate) exports: Vec<String>,
    #[command(flatten)]
    pub(crate) reading: Reading,
}

/// A mode such as `0660`.
fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "not a mode: use three octal digits, as in 0660".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct Cat {
    /// Location of the image
    pub(crate) location: String,
    /// First guest byte
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) offset: Size,
    /// How many bytes [default: to the end of the disk]
    #[arg(long, value_name = "N")]
    pub(crate) length: Option<Size>,
    #[command(flatten)]
    pub(crate) reading: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct Warm {
    /// Location of the image
    pub(crate) location: String,
    /// Only guest bytes A up to B, B excluded (may be repeated)
    #[arg(long = "range", value_name = "A-B")]
    pub(crate) ranges: Vec<String>,
    /// Only what this trace names, in its order: a file, or a location
    #[arg(long, value_name = "TRACE", conflicts_with = "ranges")]
    pub(crate) trace: Option<String>,
    #[command(flatten)]
    pub(crate) reading: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// s3://bucket/prefix; one that ends with a slash is a directory
    pub(crate) location: String,
    /// What servers are shown: sections by location prefix, in a file that only its owner may read [default:
    /// /etc/thinorigin/credentials.toml]
    #[arg(long, value_name = "FILE")]
    pub(crate) credentials: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Location of the image
    pub(crate) location: String,
    /// For how long reads wait for an image server that is away before they end in EIO [default: the server's, which is 25]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) patience: Option<u64>,
    /// The device to use [default: one that is free]
    #[arg(long, value_name = "/dev/nbdN")]
    pub(crate) device: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
    #[command(flatten)]
    pub(crate) reading: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// The device
    #[arg(value_name = "/dev/nbdN")]
    pub(crate) device: PathBuf,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

/// Which running server is asked.
#[derive(Clone, Debug, Args)]
pub(crate) struct Daemon {
    /// Control socket of the server that serves the kernel; one is started where none runs
    #[arg(long, value_name = "unix:PATH", default_value = crate::daemon::ADMIN)]
    pub(crate) admin: String,
}

impl From<Format> for formats::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => formats::Format::Raw,
            Format::Qcow => formats::Format::Qcow,
            Format::Qcow2 => formats::Format::Qcow2,
            Format::Vhd => formats::Format::Vhd,
            Format::Vhdx => formats::Format::Vhdx,
            Format::Vmdk => formats::Format::Vmdk,
        }
    }
}
