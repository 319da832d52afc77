//! Where the host connects to.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};

use crate::{info, warn};

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A vsock port of this guest.
    Vsock(u32),
    /// A Unix socket, for whatever carries it to the host (virtio-serial, vhost-user).
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("vsock", port)) => {
                port.parse().map(Self::Vsock).map_err(|_| format!("`{port}` is not a vsock port number"))
            }
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(format!("`{text}` is not an address (expected `vsock:PORT` or `unix:PATH`)")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock(port) => write!(f, "vsock:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connection of either kind.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A bound address.
pub enum Listener {
    /// On vsock.
    Vsock(VsockListener),
    /// On a Unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Binds an address. On vsock waits for the kernel's module and device to be there, however
    /// long it takes: in a bare initramfs they may come later than the agent.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        const FIRST: Duration = Duration::from_millis(250);
        const LONGEST: Duration = Duration::from_secs(8);
        match address {
            Address::Unix(path) => {
                // What an earlier run left behind; anything else stays, and binding fails.
                if fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
                    fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
                Ok(Self::Unix(listener))
            }
            Address::Vsock(port) => {
                let mut pause = FIRST;
                loop {
                    match VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, *port)) {
                        Ok(listener) => return Ok(Self::Vsock(listener)),
                        Err(error) if pause == FIRST => warn!("waiting for vsock (is its module loaded?): {error}"),
                        Err(_) => {}
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST);
                }
            }
        }
    }

    /// The next connection of the host; others are turned away.
    pub async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        loop {
            match self {
                Self::Unix(listener) => return Ok(Box::new(listener.accept().await?.0)),
                Self::Vsock(listener) => {
                    let (stream, peer) = listener.accept().await?;
                    if peer.cid() == VMADDR_CID_HOST {
                        return Ok(Box::new(stream));
                    }
                    info!("turned away a connection from CID {}, which is not the host", peer.cid());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_old_socket_is_replaced_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = Address::Unix(dir.path().join("socket"));
        drop(Listener::bind(&socket).await.unwrap());
        assert!(Listener::bind(&socket).await.is_ok());
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(Listener::bind(&Address::Unix(file.clone())).await.is_err());
        assert_eq!(fs::read_to_string(file).unwrap(), "precious");
    }
}
