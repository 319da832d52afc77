//! Where an agent can be reached.

use std::fmt;
use std::io;
use std::path::PathBuf;

use conuma_agent_proto::PORT;
use conuma_topology::VmName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_vsock::{VsockAddr, VsockStream};

/// A connection of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where agents are reached on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doors {
    /// By vsock: each VM has a context id.
    Vsock,
    /// By a Unix socket `<dir>/<vm>.sock`, which something carries into the guest (vhost-user,
    /// virtio-serial).
    Sockets(PathBuf),
}

/// Where one agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// A guest's vsock port.
    Vsock {
        /// The guest.
        cid: u32,
    },
    /// A Unix socket.
    Socket(PathBuf),
    /// There is none: the VM has no vsock device.
    None,
}

impl Doors {
    /// The door of a VM with this context id.
    pub fn of(&self, vm: &VmName, cid: Option<u32>) -> Door {
        match self {
            Self::Vsock => cid.map_or(Door::None, |cid| Door::Vsock { cid }),
            Self::Sockets(dir) => Door::Socket(dir.join(format!("{vm}.sock"))),
        }
    }
}

impl Door {
    pub(crate) async fn open(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Vsock { cid } => Ok(Box::new(VsockStream::connect(VsockAddr::new(*cid, PORT)).await?)),
            Self::Socket(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Self::None => Err(io::Error::new(io::ErrorKind::Unsupported, "the VM has no vsock device")),
        }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid } => write!(f, "vsock {cid}:{PORT}"),
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::None => f.write_str("no address"),
        }
    }
}
