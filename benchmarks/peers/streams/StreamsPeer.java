import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.util.Map;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueBytesStoreSupplier;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.Stores;

/**
 * Sum and count for each key of a topic in a store that interactive queries can ask, as often as it is asked, each time told as a line of JSON.
 *
 * <p>Options: bootstrap, topic, events (how many to wait for), workload=billing or counts, store=memory or rocksdb, cache (bytes of the
 * record cache). The processor is attached to the topic itself, so that nothing is written to a repartition topic.
 */
public final class StreamsPeer {
    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = Meter.options(arguments);
        Meter.serve(() -> once(options));
    }

    private static void once(Map<String, String> options) throws Exception {
        Properties settings = new Properties();
        settings.put("application.id", "peer-" + UUID.randomUUID());
        settings.put("bootstrap.servers", options.get("bootstrap"));
        settings.put("application.server", "127.0.0.1:1");
        settings.put("state.dir", Files.createTempDirectory("streams-peer").toString());
        settings.put("num.stream.threads", "1");
        settings.put("statestore.cache.max.bytes", options.getOrDefault("cache", "268435456"));
        settings.put("commit.interval.ms", "10000");
        settings.put("auto.offset.reset", "earliest");
        settings.put("topology.optimization", "all");
        settings.put("max.poll.records", "5000");
        settings.put("buffered.records.per.partition", "20000");
        settings.put("consumer.fetch.min.bytes", "100000");
        settings.put("consumer.max.partition.fetch.bytes", "4194304");
        settings.put("producer.linger.ms", "100");
        settings.put("producer.batch.size", "1048576");
        boolean billing = options.getOrDefault("workload", "billing").equals("billing");
        long events = Long.parseLong(options.get("events"));
        CountDownLatch ended = new CountDownLatch(1);
        KeyValueBytesStoreSupplier store =
                options.getOrDefault("store", "memory").equals("memory")
                        ? Stores.inMemoryKeyValueStore("totals")
                        : Stores.persistentKeyValueStore("totals");
        Topology topology = new Topology();
        topology.addSource("events", Serdes.ByteArray().deserializer(), reader(), options.get("topic"));
        topology.addProcessor("add", () -> new Add(events, billing, ended), "events");
        topology.addStateStore(
                Stores.keyValueStoreBuilder(store, Serdes.String(), totals()).withCachingEnabled().withLoggingEnabled(Map.of()), "add");
        KafkaStreams streams = new KafkaStreams(topology, settings);
        streams.start();
        if (!ended.await(10, TimeUnit.MINUTES)) throw new IllegalStateException("not all events came");
        var asked = streams.store(StoreQueryParameters.fromNameAndType("totals", QueryableStoreTypes.<String, long[]>keyValueStore()));
        long groups = 0, count = 0, cents = 0;
        try (KeyValueIterator<String, long[]> all = asked.all()) {
            while (all.hasNext()) {
                KeyValue<String, long[]> each = all.next();
                groups++;
                cents += each.value[0];
                count += each.value[1];
            }
        }
        Meter.tell(groups, count, cents);
        streams.close();
        streams.cleanUp();
    }

    /** Events wait in a queue before they are processed, so each is a new one. */
    private static Deserializer<Event> reader() {
        return (topic, message) -> {
            Event event = new Event();
            event.read(message);
            return event;
        };
    }

    private static Serde<long[]> totals() {
        return Serdes.serdeFrom(
                (topic, of) -> of == null ? null : ByteBuffer.allocate(16).putLong(of[0]).putLong(of[1]).array(),
                (topic, bytes) -> {
                    if (bytes == null) return null;
                    ByteBuffer buffer = ByteBuffer.wrap(bytes);
                    return new long[] {buffer.getLong(), buffer.getLong()};
                });
    }

    private static final class Add implements Processor<byte[], Event, Void, Void> {
        private final long events;
        private final boolean billing;
        private final CountDownLatch ended;
        private KeyValueStore<String, long[]> store;
        private long seen;

        Add(long events, boolean billing, CountDownLatch ended) {
            this.events = events;
            this.billing = billing;
            this.ended = ended;
        }

        @Override
        public void init(ProcessorContext<Void, Void> context) {
            store = context.getStateStore("totals");
        }

        @Override
        public void process(Record<byte[], Event> record) {
            if (seen++ == 0) Meter.begin();
            Event event = record.value();
            String key = billing ? event.customer + event.month() : event.customer;
            long[] totals = store.get(key);
            if (totals == null) totals = new long[2];
            totals[0] += billing ? event.cents : 0;
            totals[1]++;
            store.put(key, totals);
            if (seen == events) {
                Meter.end();
                ended.countDown();
            }
        }
    }
}
