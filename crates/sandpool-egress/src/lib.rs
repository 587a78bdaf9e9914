//! The only way out of a sandbox: a proxy that judges every connection by the name of where it goes.
//!
//! ```text
//! sandbox's network      lo, on which every address is its own; and six listeners, which this process has
//!   | connection
//! sandbox   one task a listener: rules, limits, names, what is open
//!   |  tls, http, socks, dns          what kind of door it came to, and which name it brought
//!   |  host, sni, dns, socks          parsers: small, total, fuzzed
//!   |  policy, address                pure judgement
//! dial      resolve once, judge each address, connect to that
//! relay     bytes, counted and timed           audit     a line for every decision, which is told to the server too (told)
//! ```
//!
//! No packet of a sandbox reaches this host: it has connections, which somebody accepted. TLS is passed on unopened: the name is
//! read from the client's first message, which goes on as it came. Only for the hosts of a pool's secrets it is opened (`secrets`).

pub mod address;
pub mod audit;
pub mod dial;
pub mod dns;
pub mod host;
pub mod names;
pub mod policy;
pub mod rate;
mod relay;
pub mod sandbox;
pub mod secrets;
pub mod serve;
pub mod sni;
pub mod socks;
mod told;
