import java.util.Map;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.functions.KeySelector;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.api.java.tuple.Tuple3;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.datastream.DataStreamUtils;
import org.apache.flink.streaming.api.datastream.KeyedStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/**
 * Sum and count for each key, from a topic or from memory, as often as it is asked, each time told as a line of JSON.
 *
 * <p>Options: input=kafka (bootstrap, topic) or memory (events, rows: a file, customers: how many); workload=billing or counts; backend=hashmap or rocksdb; reader=hand
 * or jackson; lookups=N (so many are kept in flight by a process on the other core); exchange=keyed (an ordinary keyBy) or chained (the source hands rows to the state in one thread).
 */
public final class FlinkPeer {
    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = Meter.options(arguments);
        Asked asker = options.containsKey("lookups") ? new Asked(options.get("lookups")) : null;
        Meter.serve(() -> once(options, asker));
    }

    private static void once(Map<String, String> options, Asked asker) throws Exception {
        Configuration settings = new Configuration();
        settings.setString("state.backend.type", options.getOrDefault("backend", "hashmap"));
        settings.setString("rest.bind-port", "0");
        settings.setString("rest.address", "127.0.0.1");
        settings.setString("taskmanager.memory.network.min", "128m");
        settings.setString("taskmanager.memory.network.max", "128m");
        settings.setString("taskmanager.memory.managed.size", "512m");
        if (asker != null) asker.enable(settings);
        StreamExecutionEnvironment environment = StreamExecutionEnvironment.createLocalEnvironment(1, settings);
        environment.getConfig().enableObjectReuse();
        boolean billing = options.getOrDefault("workload", "billing").equals("billing");
        DataStream<Tuple3<String, Integer, Long>> rows =
                options.get("input").equals("memory")
                        ? environment
                                .fromSequence(0, Long.parseLong(options.get("events")) - 1)
                                .map(new Generated(options.get("rows"), Integer.parseInt(options.get("customers"))))
                                .returns(Rows.TYPE)
                        : environment.fromSource(source(options, billing), WatermarkStrategy.noWatermarks(), "events");
        KeySelector<Tuple3<String, Integer, Long>, Tuple2<String, Integer>> key = row -> Tuple2.of(row.f0, row.f1);
        KeyedStream<Tuple3<String, Integer, Long>, Tuple2<String, Integer>> keyed =
                options.getOrDefault("exchange", "keyed").equals("keyed")
                        ? rows.keyBy(key, Types.TUPLE(Types.STRING, Types.INT))
                        : DataStreamUtils.reinterpretAsKeyedStream(rows, key, Types.TUPLE(Types.STRING, Types.INT));
        keyed.transform("totals", Types.LONG, new Totals.Operator(asker != null));
        if (asker == null) environment.execute();
        else asker.during(environment.executeAsync());
    }

    private static KafkaSource<Tuple3<String, Integer, Long>> source(Map<String, String> options, boolean billing) {
        return KafkaSource.<Tuple3<String, Integer, Long>>builder()
                .setBootstrapServers(options.get("bootstrap"))
                .setTopics(options.get("topic"))
                .setStartingOffsets(OffsetsInitializer.earliest())
                .setBounded(OffsetsInitializer.latest())
                .setValueOnlyDeserializer(new Rows(billing, options.getOrDefault("reader", "hand").equals("jackson")))
                .setProperty("max.poll.records", "5000")
                .setProperty("fetch.min.bytes", "100000")
                .setProperty("max.partition.fetch.bytes", "4194304")
                .setProperty("receive.buffer.bytes", "1048576")
                .setProperty("commit.offsets.on.checkpoint", "false")
                .build();
    }
}
