//! The dialects over the service layer: Azure data plane, native API, auth.
pub mod auth;
