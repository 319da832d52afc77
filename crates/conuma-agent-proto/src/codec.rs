//! Between domain values and the bytes of a frame.

mod from_wire;
mod to_wire;

use prost::Message;

use crate::request::{Request, RequestId};
use crate::response::Response;
use crate::{MAX_FRAME, wire};

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than [`MAX_FRAME`].
    #[error("a message of {0} bytes is longer than the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// Not protobuf, or a field has the wrong type.
    #[error("not a message of this protocol: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A field that must be there is not, or its kind is unknown to this version.
    #[error("{0} is missing or of an unknown kind")]
    Missing(&'static str),
    /// A field's value is outside what the protocol allows.
    #[error("{what} is out of bounds: {why}")]
    OutOfBounds {
        /// The field.
        what: &'static str,
        /// What is wrong.
        why: &'static str,
    },
}

/// The bytes of a frame (without the length prefix) for a request. Texts longer than
/// [`crate::MAX_TEXT`] are cut.
pub fn encode_request(request: &Request) -> Vec<u8> {
    wire::Request::from(request).encode_to_vec()
}

/// The bytes of a frame (without the length prefix) for a response. Texts and lists beyond the
/// protocol's limits are cut.
pub fn encode_response(response: &Response) -> Vec<u8> {
    wire::Response::from(response).encode_to_vec()
}

/// Reads a request from the bytes of a frame.
pub fn decode_request(bytes: &[u8]) -> Result<Request, DecodeError> {
    bounded(bytes).and_then(|bytes| wire::Request::decode(bytes)?.try_into())
}

/// Reads a response from the bytes of a frame.
pub fn decode_response(bytes: &[u8]) -> Result<Response, DecodeError> {
    bounded(bytes).and_then(|bytes| wire::Response::decode(bytes)?.try_into())
}

/// The id of a request that [`decode_request`] does not understand, so that it can be refused;
/// `None` if not even that can be read.
pub fn request_id(bytes: &[u8]) -> Option<RequestId> {
    let request = wire::Request::decode(bounded(bytes).ok()?).ok()?;
    Some(RequestId(request.id))
}

/// Whether these bytes are of something that an agent sent unasked. Tells it without reading the rest, so that it costs
/// next to nothing to pass over what is too much; what is passed on is decoded, and refused if it is nothing of the kind.
pub fn is_pushed(bytes: &[u8]) -> bool {
    let envelope = bounded(bytes).ok().and_then(|bytes| wire::Envelope::decode(bytes).ok());
    envelope.is_some_and(|envelope| RequestId(envelope.id) == RequestId::PUSHED)
}

fn bounded(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    if bytes.len() > MAX_FRAME { Err(DecodeError::TooLong(bytes.len())) } else { Ok(bytes) }
}
