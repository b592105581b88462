// Package proxy makes one provider of many parts: stores made of stores, which a
// gateway sees as one.
//
// Split keeps small values in rows and large ones as blobs. A large value is
// written first, under a name that no other bytes ever have, and its row second;
// so a row never refers to a blob that was not there. What fails between the two
// leaves an orphan, which is swept a day later. A blob that its keeper has lost is
// found when it is read, or by the next sweep; the read fails with kv.ErrDamaged,
// and putting the record again, from another provider, repairs it. There must be
// only one Split at a time for a set of rows and a bucket (or a prefix in it): it
// takes blobs that its rows do not refer to for its own orphans.
//
// Shards spreads records over clusters. Keys fall into slots by hash, and an
// explicit table, which weighted rendezvous hashing proposes, says which cluster
// owns a slot. A slot is moved while it is served: writes go to both clusters, all
// is copied and compared, reads change over, the old copies are removed; each step
// is durable before it takes effect and begun anew after a crash. A namespace that
// outgrows a slot is spread over buckets, and its listings are merged. A cluster
// that is down or hangs fails its own slots and no others. There must be only one
// Shards at a time for a set of clusters.
//
// The package keeps nothing on its own but the table, of which every cluster has a
// copy: Split and Shards may lose what their rows, blobs and clusters lose.
package proxy
