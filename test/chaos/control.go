package main

import (
	"context"
	"errors"
	"fmt"
)

// controlLoss shows that the check of durability finds losses: provider a is alone
// and acknowledges what its standbys have not; they are frozen, and lose their
// power together with the primary. What waits in the sockets of a frozen process
// is gone with it.
func controlLoss(ctx context.Context, o options) error {
	o.async, o.alone, o.only = true, true, ""
	fmt.Fprintln(o.out, "control: the same checks where acknowledged writes are lost: asynchronous standbys, frozen and then without power, and no provider b")
	v, err := run(ctx, o)
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	if v.lost == 0 {
		return errors.New("control: acknowledged writes must have been lost, and none was found to be: the check of durability shows nothing")
	}
	fmt.Fprintf(o.out, "control: %d lost keys were found: the check of durability looks\n", v.lost)
	return nil
}

// losses makes a loss.
func (w *world) losses(ctx context.Context, l *load) error {
	standbys := w.a.cluster.Standbys()
	for _, s := range standbys {
		s.Stop()
	}
	w.say("a: both standbys hang; writes go on")
	before := l.acked.Load()
	err := await(ctx, "writes that no standby has", func() error {
		if n := l.acked.Load() - before; n < lostWrites {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	w.say("a: the primary and the standbys lose their power; a standby is promoted")
	w.a.cluster.KillPrimary()
	for _, s := range standbys {
		s.Kill()
		s.Restart()
	}
	w.a.cluster.Promote()
	return w.awaitUp(ctx)
}

// lostWrites is how many writes are acknowledged before the loss.
const lostWrites = 500
