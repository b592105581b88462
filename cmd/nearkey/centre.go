package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/api/rest"
	"github.com/nearkey/nearkey/backup"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/disk"
	"github.com/nearkey/nearkey/store/postgres"
)

// openCentre opens what keeps the records and the catalog, with a tier before the
// records and the API before the tier. The role central has the wire beside the API.
func (m *Main) openCentre(ctx context.Context, s *service) error {
	if err := prepareData(s.config); err != nil {
		return err
	}
	cat, err := s.openCatalog(ctx)
	if err != nil {
		return err
	}
	rules := s.rules(uint16(s.config.Gateway.Node))
	far, err := s.openFar(ctx, cat, rules.Stamp)
	if err != nil {
		return err
	}
	barrier := backup.NewBarrier(far.store)
	tier := s.newTier(barrier, edge.Options{Sole: far.sole})
	hub := feed.NewHub(s.hubOptions(far.store))
	cat.UseWorkers(tier, rules.Stamp)
	workers, err := s.openWorkers(ctx, tier, cat, cat, rules)
	if err != nil {
		return err
	}
	source := feed.NewSource(tailed{Store: far.store, tier: tier, changed: workers.changed}, hub, s.logger)
	janitor := catalog.NewJanitor(cat, tier, s.logger)
	publisher := catalog.NewPublisher(cat, tier, rules.Stamp, s.logger) // before the root credentials, so that they are published
	s.work = append(s.work, tier.Run, source.Run, janitor.Run, publisher.Run)
	if s.account, err = m.ensureRoot(ctx, s.config, cat); err != nil {
		return err
	}
	if _, err := cat.Subdomain(ctx, s.account); err != nil { // Workers answer there before anyone asks where
		return err
	}
	err = s.openAPI(ctx, tier, cat, rest.Config{
		Catalog: cat, Rules: rules, Ready: far.ready, Dropped: janitor.Wake,
		Namespaces: int(*s.config.effectiveLimits().Namespaces), Workers: workers.rest(),
	}, s.administered(far.administration(cat, s.logger), admin.NewBackups(admin.BackupConfig{
		Barrier: barrier, Front: tier, Catalog: cat, Acks: far.chosen(), Stamp: rules.Stamp, Account: s.account,
		Retention: far.retention, Version: buildVersion(), Logger: s.logger,
	}).Register))
	if err != nil || s.config.Fleet.Role == roleSingle {
		return err
	}
	return s.openWire(ctx, tier, hub)
}

// openCatalog opens the catalog: in the data directory or, if one is named, in a
// database that other central processes may share.
func (s *service) openCatalog(ctx context.Context) (cat *catalog.Catalog, err error) {
	if s.config.Catalog.DatabaseFile == "" {
		cat, err = catalog.Open(ctx, filepath.Join(s.config.Data, "catalog.db"))
	} else {
		cat, err = s.openCatalogDatabase(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("open the catalog: %w", err)
	}
	s.opened = append(s.opened, cat.Close)
	return cat, nil
}

// openCatalogDatabase opens a catalog in a database of a server of its own.
func (s *service) openCatalogDatabase(ctx context.Context) (*catalog.Catalog, error) {
	url, err := readDatabaseURL(s.config.Catalog.DatabaseFile)
	if err != nil {
		return nil, usagef("setting catalog.database_file: %w", err)
	}
	db, err := postgres.OpenSQL(url)
	if err != nil {
		return nil, usagef("setting catalog.database_file: %w", err)
	}
	return catalog.OpenPostgreSQL(ctx, db)
}

// hubOptions are those of the hub of the centre. A single process has nobody who
// reads it: its tier hears of changes before the hub does.
func (s *service) hubOptions(store kv.Store) feed.HubOptions {
	if s.config.Fleet.Role == roleSingle {
		return feed.HubOptions{Ring: 1}
	}
	return feed.HubOptions{Log: store}
}

func (s *service) openStore() (*disk.Store, error) {
	store, err := disk.Open(filepath.Join(s.config.Data, "store"), disk.Options{
		CacheBytes:    s.memory.cache,
		MemTableBytes: int(s.memory.memTable),
		ForgetAfter:   time.Duration(s.config.TombstoneRetention),
		Logger:        s.logger,
	})
	if err != nil {
		return nil, fmt.Errorf("open the store in %s: %w", s.config.Data, err)
	}
	s.opened = append(s.opened, store.Close)
	storeMetrics(s.metrics, store)
	return store, nil
}

// rules are the rules of the product for what is written through this process.
func (s *service) rules(node uint16) *kv.Rules {
	limits := s.config.limits()
	rules := &kv.Rules{Limits: limits, Stamp: kv.NewStamper(node, nil)}
	if limits.WriteInterval > 0 {
		rules.Rate = kv.NewWriteRate(limits.WriteInterval)
	}
	return rules
}

// newTier returns a tier before far with the settings of the process.
func (s *service) newTier(far kv.Store, options edge.Options) *edge.Tier {
	options.NearBytes, options.FarBytes, options.MaxStale = s.memory.near, s.memory.far, tierStale(s.config)
	tier := edge.New(far, options)
	tierMetrics(s.metrics, tier)
	return tier
}

// tierStale is max_stale as a tier and a replica want it: negative for none.
func tierStale(c Config) time.Duration {
	if c.Fleet.MaxStale == 0 {
		return -1
	}
	return time.Duration(c.Fleet.MaxStale)
}

// tailed is a store whose change log tells a tier of each change before it tells
// whoever reads the log: who hears of a change and reads the key through the tier
// finds it known there. The tier needs it too: a write that was given up by who
// made it may be stored all the same. Then it tells those who rely on what the tier
// was told.
type tailed struct {
	kv.Store
	tier    *edge.Tier
	changed func([]kv.Change)
}

// Changes implements the ability of kv.Changes.
func (t tailed) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	changes, next, err := kv.Changes(ctx, t.Store, after, limit)
	t.tier.Changed(changes)
	t.changed(changes)
	return changes, next, err
}

// AwaitChange implements the ability of kv.AwaitChange.
func (t tailed) AwaitChange(ctx context.Context, after kv.Cursor) error {
	return kv.AwaitChange(ctx, t.Store, after)
}
