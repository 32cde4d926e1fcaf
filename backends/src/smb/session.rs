//! A file that is open on a server, with the session it was opened in.

use super::announce::Announcing;
use super::{Place, wrong};
use crate::Kind;
use crate::parts::SILENCE;
use crate::retry::Failure;
use crate::tries::Fault;
use bytes::Bytes;
use smb2::client::connection::CompoundOp;
use smb2::client::{Cipher, Connection, Frame, Session, Tree};
use smb2::msg::create::{CreateDisposition, CreateRequest, CreateResponse, ImpersonationLevel, ShareAccess};
use smb2::msg::query_info::{InfoType, QueryInfoRequest, QueryInfoResponse};
use smb2::msg::read::{ReadRequest, ReadResponse, SMB2_CHANNEL_NONE};
use smb2::pack::{ReadCursor, Unpack};
use smb2::transport::TcpTransport;
use smb2::types::flags::FileAccessMask;
use smb2::types::status::NtStatus;
use smb2::types::{Command, CreditCharge, FileId, OplockLevel, TreeId};
use smb2::{Error as SmbError, ErrorKind, encode_path};
use std::ops::Range;
use std::time::Duration;

/// The most that one READ asks for.
const MAX_READ: u32 = 1 << 20;

/// How much payload one credit pays for ([MS-SMB2] section 3.1.5.2).
const CREDIT: u32 = 64 << 10;

/// How long a connect may take.
const CONNECT: Duration = Duration::from_secs(5);

/// FileNetworkOpenInformation ([MS-FSCC] section 2.4.29): five times and sizes, and the attributes.
const NETWORK_OPEN: u8 = 34;
const NETWORK_OPEN_LEN: u32 = 56;

/// FileInternalInformation ([MS-FSCC] section 2.4.22): the file's number on its volume.
const INTERNAL: u8 = 6;
const INTERNAL_LEN: u32 = 8;

/// FILE_ATTRIBUTE_DIRECTORY.
const DIRECTORY: u32 = 0x10;

/// What must stay as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    /// In bytes.
    pub(super) size: u64,
    /// LastWriteTime, in units of 100 ns since 1601.
    pub(super) written: u64,
}

/// The open file.
pub(super) struct Opened {
    connection: Connection,
    tree: TreeId,
    file: FileId,
    /// As they were when it was opened.
    pub(super) attributes: Attributes,
    /// The file's number on its volume; 0 where the server has none.
    pub(super) index: u64,
    /// The most that one READ asks for.
    pub(super) read_size: u32,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("attributes", &self.attributes).finish_non_exhaustive()
    }
}

impl Opened {
    /// Connects, signs in, and opens the file.
    pub(super) async fn open(place: &Place) -> Result<Opened, Fault> {
        let host = &place.host;
        let address = if host.contains(':') {
            format!("[{host}]:{}", place.port)
        } else {
            format!("{host}:{}", place.port)
        };
        let transport = TcpTransport::connect(&address, CONNECT).await.map_err(unreached)?;
        let transport = Announcing::new(transport);
        let (sender, receiver) = (Box::new(transport.clone()), Box::new(transport.clone()));
        let mut connection = Connection::from_transport(sender, receiver, host.as_str());
        connection.set_response_timeout(Some(SILENCE));
        connection.negotiate().await.map_err(fault)?;
        transport.settle(&connection);
        let session = Session::setup(&mut connection, &place.user, place.password.reveal(), &place.domain);
        let session = session.await.map_err(fault)?;
        let tree =
            Tree::connect(&mut connection, &place.share).await.map_err(|error| match error.kind() {
                ErrorKind::NotFound => {
                    Fault::new(Kind::NotFound, Failure::Final, "the server has no such share")
                }
                _ => fault(error),
            })?;
        let params = connection.params().ok_or_else(|| wrong("the server did not negotiate"))?;
        if tree.encrypt_data && !connection.should_encrypt() {
            let (Some(encrypt), Some(decrypt)) = (session.encryption_key, session.decryption_key) else {
                let what = "the share requires encryption, which a session without a user cannot have";
                return Err(Fault::new(Kind::Denied, Failure::Final, what));
            };
            connection.activate_encryption(encrypt, decrypt, params.cipher.unwrap_or(Cipher::Aes128Ccm));
        }
        let path = encode_path(&place.path);
        let name = if tree.is_dfs { format!("{host}\\{}\\{path}", place.share) } else { path };
        let (file, attributes, index) = create(&connection, tree.tree_id, name).await?;
        let read_size = params.max_read_size.clamp(4096, MAX_READ);
        Ok(Opened { connection, tree: tree.tree_id, file, attributes, index, read_size })
    }

    /// Whether nothing can be read any more.
    pub(super) fn is_dead(&self) -> bool {
        self.connection.is_disconnected()
    }

    /// How many bytes the server has sent on this connection.
    pub(super) fn received(&self) -> u64 {
        self.connection.inbound().bytes_received
    }

    /// At least one byte of `range`, which is at most [`read_size`](Self::read_size) long, from its start; and what the
    /// file was right after it.
    pub(super) async fn read(&self, range: Range<u64>) -> Result<(Bytes, Attributes), Fault> {
        let length = u32::try_from(range.end - range.start).unwrap_or(u32::MAX).min(self.read_size);
        let read = ReadRequest {
            // Where the data begins in the answer: behind its header and its fixed part.
            padding: 0x50,
            flags: 0,
            length,
            offset: range.start,
            file_id: self.file,
            minimum_count: 1,
            channel: SMB2_CHANNEL_NONE,
            remaining_bytes: 0,
            read_channel_info: Vec::new(),
        };
        let query = query(self.file, NETWORK_OPEN, NETWORK_OPEN_LEN);
        let charge = CreditCharge(u16::try_from(length.div_ceil(CREDIT)).unwrap_or(u16::MAX));
        let operations = [
            CompoundOp {
                command: Command::Read,
                body: &read,
                tree_id: Some(self.tree),
                credit_charge: charge,
            },
            CompoundOp::new(Command::QueryInfo, &query, Some(self.tree)),
        ];
        let [data, info] = execute(&self.connection, &operations).await?;
        let attributes = attributes(&info?)?;
        let data: ReadResponse = unpack(&data?)?;
        if data.data.is_empty() || data.data.len() > length as usize {
            return Err(wrong("the server sent none of the bytes that were asked for, or too many"));
        }
        Ok((Bytes::from(data.data), attributes))
    }
}

/// Opens the file `name` of `tree` for reading.
async fn create(
    connection: &Connection,
    tree: TreeId,
    name: String,
) -> Result<(FileId, Attributes, u64), Fault> {
    let access = FileAccessMask::FILE_READ_DATA | FileAccessMask::FILE_READ_ATTRIBUTES;
    let create = CreateRequest {
        requested_oplock_level: OplockLevel::None,
        impersonation_level: ImpersonationLevel::Impersonation,
        desired_access: FileAccessMask::new(access | FileAccessMask::SYNCHRONIZE),
        file_attributes: 0,
        share_access: ShareAccess(ShareAccess::FILE_SHARE_READ | ShareAccess::FILE_SHARE_DELETE),
        create_disposition: CreateDisposition::FileOpen,
        create_options: 0,
        name,
        create_contexts: Vec::new(),
    };
    // The file that the CREATE before them opens.
    let info = query(FileId::SENTINEL, NETWORK_OPEN, NETWORK_OPEN_LEN);
    let number = query(FileId::SENTINEL, INTERNAL, INTERNAL_LEN);
    let operations = [
        CompoundOp::new(Command::Create, &create, Some(tree)),
        CompoundOp::new(Command::QueryInfo, &info, Some(tree)),
        CompoundOp::new(Command::QueryInfo, &number, Some(tree)),
    ];
    let [created, info, number] = execute(connection, &operations).await?;
    let created: CreateResponse = unpack(&created?)?;
    if created.file_attributes & DIRECTORY != 0 {
        return Err(Fault::new(Kind::Unsupported, Failure::Final, "a directory, not a file"));
    }
    let attributes = attributes(&info?)?;
    // Not every file system numbers its files.
    let number = number.and_then(|frame| unpack::<QueryInfoResponse>(&frame));
    let index =
        number.ok().and_then(|info| info.output_buffer.first_chunk().copied()).map(u64::from_le_bytes);
    Ok((created.file_id, attributes, index.unwrap_or(0)))
}

fn query(file_id: FileId, file_info_class: u8, output_buffer_length: u32) -> QueryInfoRequest {
    QueryInfoRequest {
        info_type: InfoType::File,
        file_info_class,
        output_buffer_length,
        additional_information: 0,
        flags: 0,
        file_id,
        input_buffer: Vec::new(),
    }
}

/// Sends `operations` as one compound; each has an outcome of its own.
async fn execute<const N: usize>(
    connection: &Connection,
    operations: &[CompoundOp<'_>; N],
) -> Result<[Result<Frame, Fault>; N], Fault> {
    let answers = connection.execute_compound(operations).await.map_err(fault)?;
    let outcomes: Vec<_> = operations
        .iter()
        .zip(answers)
        .map(|(operation, answer)| match answer.map_err(fault)? {
            frame if frame.header.status == NtStatus::SUCCESS => Ok(frame),
            frame => {
                Err(fault(SmbError::Protocol { status: frame.header.status, command: operation.command }))
            }
        })
        .collect();
    outcomes.try_into().map_err(|_| wrong("the server did not answer all of a compound"))
}

fn unpack<T: Unpack>(frame: &Frame) -> Result<T, Fault> {
    T::unpack(&mut ReadCursor::new(&frame.body)).map_err(fault)
}

fn attributes(frame: &Frame) -> Result<Attributes, Fault> {
    let info: QueryInfoResponse = unpack(frame)?;
    let field = |at: usize| info.output_buffer.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
    // CreationTime and LastAccessTime come first; ChangeTime and AllocationSize stand between these two.
    match (field(16), field(40)) {
        (Some(written), Some(size)) => Ok(Attributes { size, written }),
        _ => Err(wrong("the server's answer to a QUERY_INFO is too short")),
    }
}

/// Why there is no connection.
fn unreached(error: SmbError) -> Fault {
    let what = match error {
        SmbError::Io(cause) => format!("the server cannot be reached: {cause}"),
        _ => "the server cannot be reached: it did not answer in time".to_owned(),
    };
    Fault::new(Kind::Unreachable, Failure::Unreached, what)
}

/// What an error of the protocol means.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err takes")]
fn fault(error: SmbError) -> Fault {
    let status = error.status().map(|status| format!(" (status {:#010x})", status.0)).unwrap_or_default();
    let (kind, failure, what) = match error.kind() {
        ErrorKind::AuthRequired | ErrorKind::GuestSessionRefused => {
            (Kind::Denied, Failure::Final, "the server does not accept the user and password".to_owned())
        }
        ErrorKind::AccessDenied | ErrorKind::SigningRequired => {
            (Kind::Denied, Failure::Final, "the server denies access".to_owned())
        }
        ErrorKind::NotFound => (Kind::NotFound, Failure::Final, "no such file".to_owned()),
        ErrorKind::InvalidName => {
            (Kind::NotFound, Failure::Final, "the server cannot have a file of this name".to_owned())
        }
        ErrorKind::IsADirectory | ErrorKind::NotADirectory => {
            (Kind::Unsupported, Failure::Final, "not a file that can be read".to_owned())
        }
        ErrorKind::SharingViolation => {
            (Kind::Unreachable, Failure::Transient, "another client has it open for writing".to_owned())
        }
        ErrorKind::DfsReferral | ErrorKind::DfsTargetNotAllowed | ErrorKind::Unsupported => {
            let what = "it is on another server, or in a place that is not read".to_owned();
            (Kind::Unsupported, Failure::Final, what)
        }
        ErrorKind::ConnectionLost => {
            (Kind::Unreachable, Failure::Transient, "the server cannot be reached".to_owned())
        }
        ErrorKind::TimedOut | ErrorKind::SessionExpired | ErrorKind::Cancelled => {
            (Kind::Unreachable, Failure::Transient, "the server stopped answering".to_owned())
        }
        ErrorKind::Io => (Kind::Unreachable, Failure::Transient, format!("the connection broke: {error}")),
        _ => (Kind::BadAnswer, Failure::Wrong, format!("the server answered what makes no sense: {error}")),
    };
    Fault::new(kind, failure, format!("{what}{status}"))
}
