//! What comes out of a machine's port, and what goes into it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandpool_vm::mux::{Heard, MAX_WORDS, Mux, Side};

fuzz_target!(|bytes: &[u8]| {
    for side in [Side::Keeper, Side::Machine] {
        let mut mux = Mux::new(side);
        mux.open(b"D");
        for piece in bytes.chunks(61) {
            let Ok(all) = mux.hear(piece) else { break };
            for heard in all {
                match heard {
                    Heard::Open { stream, .. } => mux.send(stream, &vec![0; mux.room(stream)]),
                    Heard::Data { stream, bytes } => mux.took(stream, bytes.len()),
                    Heard::End(stream) => {
                        mux.end(stream);
                        assert!(mux.is_over(stream));
                    }
                    Heard::Broken(why) => assert!(why.len() <= 3 * MAX_WORDS),
                    Heard::Reset(_) | Heard::Credit(_) | Heard::Resume(_) | Heard::Up(_) => {}
                    Heard::Prepare | Heard::Hush | Heard::Serves => {}
                }
            }
            mux.written(mux.output().len());
        }
    }
});
