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
// Shards spreads records over clusters.
//
// The package keeps nothing on its own: what Split may lose is what its rows and
// its blobs lose.
package proxy
