package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/internal/guard"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/proxy"
	"github.com/nearkey/nearkey/store/postgres"
	"github.com/nearkey/nearkey/store/s3"
	"golang.org/x/sync/errgroup"
)

// openProviders opens all providers. missing is told of keys whose value one of
// them has lost.
func (s *service) openProviders(ctx context.Context, missing func(kv.Ref)) ([]gateway.Provider, map[string]*proxy.Shards, error) {
	stores, err := s.openClusters(ctx)
	if err != nil {
		return nil, nil, err
	}
	var providers []gateway.Provider
	all := map[string]*proxy.Shards{}
	for i := range s.config.Providers {
		p := &s.config.Providers[i]
		if p.URL != "" {
			client, err := s.client(p.URL)
			if err != nil {
				return nil, nil, err
			}
			providers = append(providers, gateway.Provider{Name: p.Name, Store: client})
			continue
		}
		store, shards, err := s.openProvider(p, stores, missing)
		if err != nil {
			return nil, nil, fmt.Errorf("provider %s: %w", p.Name, err)
		}
		all[p.Name] = shards
		providers = append(providers, gateway.Provider{Name: p.Name, Store: store, Probes: shards.Probes})
	}
	return providers, all, nil
}

// openClusters opens the clusters of all providers at once: one that is away takes
// its time to be found so.
func (s *service) openClusters(ctx context.Context) (map[*ClusterConfig]*postgres.Store, error) {
	type opening struct {
		cluster *ClusterConfig
		store   *postgres.Store
		options postgres.Options
	}
	var all []*opening
	group, ctx := errgroup.WithContext(ctx)
	for i := range s.config.Providers {
		p := &s.config.Providers[i]
		for j := range p.Clusters {
			c := &p.Clusters[j]
			o := &opening{cluster: c, options: postgres.Options{
				MaxConns: int(c.Connections), Portable: bool(c.Portable), Logger: s.logger.With("provider", p.Name, "cluster", c.Name),
			}}
			all = append(all, o)
			group.Go(func() (err error) {
				if o.store, err = c.open(ctx, o.options); err != nil {
					return fmt.Errorf("provider %s, cluster %s: %w", p.Name, c.Name, err)
				}
				return nil
			})
		}
	}
	err := group.Wait()
	stores := map[*ClusterConfig]*postgres.Store{}
	for _, o := range all {
		if o.store == nil {
			continue
		}
		stores[o.cluster] = o.store
		s.opened = append(s.opened, o.store.Close)
		s.work = append(s.work, o.store.Run)
	}
	return stores, err
}

// open opens the database of a cluster. What it says never holds the URL, which
// may have a password.
func (c *ClusterConfig) open(ctx context.Context, options postgres.Options) (*postgres.Store, error) {
	url := c.Postgres
	if c.PostgresFile != "" {
		var err error
		if url, err = readDatabaseURL(c.PostgresFile); err != nil {
			return nil, usagef("setting postgres_file: %w", err)
		}
	}
	return postgres.Open(ctx, url, options)
}

// readDatabaseURL reads the URL of a database from a file that others cannot read.
func readDatabaseURL(file string) (string, error) {
	url, err := readPrivate(file)
	if err != nil {
		return "", err
	}
	if err := checkPostgres(url, true); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return url, nil
}

// readPrivate reads a file of one line that others have no right to.
func readPrivate(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("others can read %s (mode %04o); if nobody has, do: chmod o= %s", file, info.Mode().Perm(), file)
	}
	return readSecret(file)
}

// openProvider opens a provider of clusters and, perhaps, a bucket.
func (s *service) openProvider(p *ProviderConfig, stores map[*ClusterConfig]*postgres.Store, missing func(kv.Ref)) (kv.Store, *proxy.Shards, error) {
	logger := s.logger.With("provider", p.Name)
	clusters := make([]proxy.Cluster, len(p.Clusters))
	for i := range p.Clusters {
		c := &p.Clusters[i]
		cluster := guard.Before(stores[c], guard.Options{Name: "cluster " + c.Name, Logger: logger, Deadline: time.Duration(s.config.Gateway.Deadline)})
		s.work = append(s.work, cluster.Run)
		clusters[i] = proxy.Cluster{Name: c.Name, Weight: float64(*c.Weight), Store: cluster}
		clusterMetrics(s.metrics, p.Name, c.Name, stores[c])
	}
	shards, err := proxy.NewShards(clusters, proxy.ShardsOptions{
		Keeper: proxy.FileKeeper(filepath.Join(s.config.Data, shardsPrefix+p.Name)), CopyRate: int(p.CopyRate), Logger: logger,
	})
	if err != nil {
		return nil, nil, err
	}
	s.work = append(s.work, func(ctx context.Context) error {
		_ = shards.Run(ctx) // it says so itself; the provider is then down, and the others go on
		return nil
	})
	shardsMetrics(s.metrics, p.Name, shards)
	if p.Blobs == nil {
		return shards, shards, nil
	}
	b := p.Blobs
	options := s3.Options{
		Endpoint: b.Endpoint, Region: b.Region, Bucket: b.Bucket, Prefix: b.Prefix,
		AccessKeyID: b.AccessKeyID, SecretKeyFile: b.SecretKeyFile, PathStyle: bool(b.PathStyle), CAFile: b.CAFile, Logger: logger,
	}
	bucket, err := s3.Open(options)
	if err != nil {
		return nil, nil, usagef("settings of blobs: %w", err)
	}
	blobs := proxy.Guarded(bucket, guard.Options{Name: "blobs", Logger: logger, Deadline: time.Duration(s.config.Gateway.Deadline)})
	s.work = append(s.work, blobs.Run)
	split := proxy.NewSplit(shards, blobs, bucket, proxy.SplitOptions{InlineBytes: int(p.InlineBytes), Missing: missing, Logger: logger})
	s.work = append(s.work, split.Run)
	splitMetrics(s.metrics, p.Name, split)
	return split, shards, nil
}
