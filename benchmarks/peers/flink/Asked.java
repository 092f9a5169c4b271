import java.io.BufferedReader;
import java.io.BufferedWriter;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.ServerSocket;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.core.execution.JobClient;

/** An `Asker` in a process of its own on the other core, that lives as long as this one. */
final class Asked {
    private final int port;
    private final BufferedWriter to;
    private final BufferedReader back;

    Asked(String lookups) throws IOException {
        try (ServerSocket free = new ServerSocket(0)) {
            port = free.getLocalPort();
        }
        String path = System.getProperty("java.class.path");
        Process process =
                new ProcessBuilder("taskset", "-c", "1", "java", "-Xmx1g", "-cp", path, "Asker", String.valueOf(port), lookups)
                        .redirectError(ProcessBuilder.Redirect.INHERIT)
                        .start();
        Runtime.getRuntime().addShutdownHook(new Thread(process::destroyForcibly));
        to = process.outputWriter();
        back = process.inputReader();
    }

    /** Queryable state, answered at the port that the asker knows. */
    void enable(Configuration settings) {
        settings.setString("queryable-state.enable", "true");
        settings.setString("queryable-state.proxy.ports", String.valueOf(port));
        settings.setString("queryable-state.server.ports", "0");
    }

    /** Ask the job from now on until its last event is in state. */
    void during(JobClient job) throws Exception {
        Meter.atEnd = () -> {
            say("");
            try {
                Meter.asked = Long.parseLong(back.readLine().split(" ")[0]);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        };
        say(job.getJobID().toHexString());
        job.getJobExecutionResult().get();
    }

    private void say(String line) {
        try {
            to.write(line + "\n");
            to.flush();
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }
}
