//! What a peer sends is decoded, or refused, whatever it is; and what was decoded can be sent on and means the same.
#![no_main]

use conuma_agent_proto::{
    Reply, decode_request, decode_response, encode_request, encode_response, is_pushed, request_id,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = request_id(bytes);
    if let Ok(request) = decode_request(bytes) {
        assert_eq!(decode_request(&encode_request(&request)).as_ref(), Ok(&request));
    }
    if let Ok(response) = decode_response(bytes) {
        assert_eq!(is_pushed(bytes), matches!(response.body, Ok(Reply::Pushed(_))));
        assert_eq!(decode_response(&encode_response(&response)).as_ref(), Ok(&response));
    }
});
