//! The node agent: segments, attachments and the CNI plugin.
